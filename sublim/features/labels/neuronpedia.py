"""Importing feature labels from Neuronpedia's public bucket: all explanations of an SAE's features as one table.

The bucket holds `<root>/<model>/<source>/explanations/*.jsonl.gz`. Each line is a JSON object with `index`,
`description` and, if known, `explanationModelName` and `scoreV1`. A feature may have several explanations.
"""

import gzip
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from sublim.core.digest import digest
from sublim.core.errors import UserError
from sublim.features.labels.config import LabelsConfig
from sublim.features.labels.public_bucket import BucketFile, PublicBucket, keys_outside

logger = logging.getLogger(__name__)
SUFFIX = ".jsonl.gz"
SHOWN = 12
SCHEMA = {"feature": pl.UInt32, "description": pl.String, "model": pl.String, "score": pl.Float64}


def import_labels(out: Path, config: LabelsConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: writes labels.parquet {feature, description, chosen, model, score}, the chosen row of each feature first.

    All distinct explanations are kept. The one with the highest score is chosen; ties and missing scores are decided
    by the order of `prefer`, then by the names of the explaining models and the texts. Costs the download, some 10 MB
    for 16k features. Downloaded files, also partial ones, stay in `scratch` for another attempt.
    """
    bucket = PublicBucket(config)
    listed = bucket.entries(config.prefix)
    if outside := keys_outside(listed, config.prefix):
        raise UserError(
            f"{config.bucket} lists {outside[0]!r}, which leaves its folder: nothing was imported; check `bucket`"
        )
    entries = [entry for entry in listed if entry.key.endswith(SUFFIX)]
    if not entries:
        raise UserError(explain_missing(bucket, config))
    counts = Counter[str]()
    paths = bucket.download(entries, scratch)
    rows = (
        row
        for entry, path in zip(entries, paths, strict=True)
        for row in read_explanations(path, entry, config, counts)
    )
    table = choose(pl.DataFrame(rows, schema=SCHEMA, orient="row"), config.prefer)
    if table.is_empty():
        raise UserError(f"{config.prefix} explains no feature: choose another `source`")
    table.write_parquet(out / "labels.parquet")
    return {
        "bucket": {"files": len(entries), "bytes": sum(entry.size for entry in entries), "listing": digest(entries)},
        "ignored_files": len(listed) - len(entries),
        **{name: counts[name] for name in ("without_text", "without_feature", "mended")},
        "features": table["feature"].n_unique(),
        "explanations": len(table),
    }


def choose(rows: pl.DataFrame, prefer: tuple[str, ...]) -> pl.DataFrame:
    """Sorts the explanations of each feature by preference and marks the first as chosen."""
    rank = pl.col("model").replace_strict(
        list(prefer), list(range(len(prefer))), default=len(prefer), return_dtype=pl.UInt32
    )
    keys: list[pl.Expr] = [pl.col("feature"), -pl.col("score"), rank, pl.col("model"), pl.col("description")]
    ordered = rows.unique().sort(keys, nulls_last=True)
    return ordered.select(
        "feature", "description", pl.col("feature").is_first_distinct().alias("chosen"), "model", "score"
    )


def explain_missing(bucket: PublicBucket, config: LabelsConfig) -> str:
    """The message for a prefix without explanations: it names the models or SAEs that exist."""
    folder = f"{config.root}/{config.model}/"
    if found := bucket.folders(folder):
        return f"{config.bucket} has no explanations in {config.prefix}: {_near('source', config.source, found)}"
    if found := bucket.folders(f"{config.root}/"):
        return f"{config.bucket} has no model {config.model!r}: {_near('model', config.model, found)}"
    found = bucket.folders("")
    return f"{config.bucket} has nothing in {config.root}/: {_near('root', config.root, found)}"


def _near(field: str, wanted: str, found: list[str]) -> str:
    nearest = get_close_matches(wanted, found, n=SHOWN, cutoff=0.3)
    shown = [*nearest, *(name for name in found if name not in nearest)][:SHOWN]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return f"set `{field}` to one of {', '.join(shown)}{more}" if shown else "the bucket is empty"


def read_explanations(
    path: Path, entry: BucketFile, config: LabelsConfig, counts: Counter[str]
) -> Iterator[tuple[int, str, str | None, float | None]]:
    """Yields (feature, description, model, score) for the lines of a file.

    `counts` gets the numbers of lines that are left out or mended. Raises UserError for a line that cannot be used.
    """
    for number, line in enumerate(decompressed_lines(path, entry.key, config.largest_mib), start=1):
        if line.strip():
            where = f"{entry.key}:{number}"
            row = _object(line, where, counts)
            _same_sae(row, config, where)
            text = (_text(row.get("description")) or "").strip()
            if not text:
                counts["without_text"] += 1
                continue
            if row.get("index") is None:
                counts["without_feature"] += 1
                continue
            yield _feature(row, where), text, _text(row.get("explanationModelName")), _number(row.get("scoreV1"))


def decompressed_lines(path: Path, key: str, largest_mib: int) -> Iterator[bytes]:
    """Yields the lines of a gzip file.

    Raises UserError if it decompresses to more than `largest_mib`, or if it is damaged, and then removes it.
    """
    left = largest_mib << 20
    try:
        with gzip.open(path) as file:
            while line := file.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise UserError(f"{key} unpacks to more than {largest_mib} MiB: raise largest_mib if you trust it")
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        path.unlink()
        raise UserError(
            f"{key} is no whole gzip file ({error}): run again, and if that does not help tell Neuronpedia"
        ) from error


def _object(line: bytes, where: str, counts: Counter[str]) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row = _mended(line)
        if row is None:
            raise UserError(f"{where} is not JSON ({error}): nothing was imported, tell Neuronpedia") from error
        counts["mended"] += 1
        if counts["mended"] == 1:
            logger.warning("%s has an incomplete character or a score that is not a number: both are left out", where)
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object: nothing was imported, tell Neuronpedia")
    return row


def _mended(line: bytes) -> Any:
    """Parses a line with an incomplete character (from a truncated description), NaN or a control character.

    None if it is still not JSON.
    """
    try:
        return json.loads(line.decode("utf-8", "replace"), strict=False)
    except (json.JSONDecodeError, RecursionError):
        return None


def _same_sae(row: dict[str, Any], config: LabelsConfig, where: str) -> None:
    """Raises UserError for an explanation of another SAE, whose features have the same numbers."""
    said = (row.get("modelId") or config.model, row.get("layer") or config.source)
    if said != (config.model, config.source):
        raise UserError(f"{where} explains a feature of {said[0]} {said[1]}: nothing was imported, tell Neuronpedia")


def _feature(row: dict[str, Any], where: str) -> int:
    index = row.get("index")
    if isinstance(index, str) and index.isascii() and index.isdigit():
        index = int(index)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 2**32:
        raise UserError(f"{where} has no feature number as its index but {index!r}: nothing was imported")
    return index


def _text(value: Any) -> str | None:
    """A text that is not empty, or None; lone surrogates become the replacement character."""
    if not isinstance(value, str) or not value:
        return None
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _number(value: Any) -> float | None:
    """A finite score, or None."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return number if number is not None and math.isfinite(number) else None
