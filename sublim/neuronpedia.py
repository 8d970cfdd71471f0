"""Labels of an SAE's features from Neuronpedia's public bucket, as one Parquet.

    labels.parquet    feature, description, chosen, model, score

Every explanation is kept, once. One of each feature is chosen: the highest score (unscored ones after all scored),
then the explaining model that comes first in `prefer`, then the first by model and text.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl

from sublim.bucket import check_name, fetch, listed, open_bucket
from sublim.digest import digest
from sublim.errors import UserError
from sublim.neuronpedia_config import LabelsConfig

SCHEMA = {"feature": pl.UInt32, "description": pl.String, "chosen": pl.Boolean, "model": pl.String, "score": pl.Float64}
LARGEST = 2**31
"""Bytes that one file may unpack to; a real one has some millions."""


class Label(NamedTuple):
    """One explanation of one feature."""

    feature: int
    description: str
    model: str | None
    score: float | None


def import_labels(out: Path, config: LabelsConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: writes labels.parquet, the same bytes in whatever order the files came.

    Resumes with the files, and the parts of files, that a broken run had fetched. The bucket's content is no part of
    the key: forget the stage to look again.
    """
    client = open_bucket(config)
    wanted = listed(client, config)
    labels = set[Label]()
    for one, path in zip(wanted, fetch(client, config, wanted, scratch / "files"), strict=True):
        try:
            labels.update(read_labels(path, one.key))
        except UserError:
            path.unlink()  # so that the next run fetches it anew
            raise
    if not labels:
        raise UserError(f"{config.bucket}/{config.prefix} holds no explanation: look at model and source")
    table = choose(labels, config.prefer)
    table.write_parquet(out / "labels.parquet")
    return {
        "features": table["feature"].n_unique(),
        "labels": len(table),
        "files": len(wanted),
        "listing": digest([[one.key, one.size, one.tag] for one in wanted]),
    }


def choose(labels: set[Label], prefer: tuple[str, ...]) -> pl.DataFrame:
    """All labels by feature, the chosen one first."""

    def rank(label: Label) -> tuple[Any, ...]:
        scored = label.score is not None
        place = prefer.index(label.model) if label.model in prefer else len(prefer)
        return label.feature, not scored, -(label.score or 0.0), place, label.model or "", label.description

    rows, before = list[tuple[Any, ...]](), None
    for label in sorted(labels, key=rank):
        rows.append((label.feature, label.description, label.feature != before, label.model, label.score))
        before = label.feature
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def read_labels(path: Path, name: str) -> Iterator[Label]:
    """The labels of one file, plain, gzipped or a tar of such; nothing is unpacked to disk. `name` says what it is."""
    try:
        if name.endswith((".tar.gz", ".tgz", ".tar")):
            with tarfile.open(path) as archive:
                for member in archive:
                    check_name(member.name, name)
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        with gzip.open(file) if member.name.endswith(".gz") else file as lines:
                            yield from _labels(lines, member.name)
        elif name.endswith(".gz"):
            with gzip.open(path) as file:
                yield from _labels(file, name)
        else:
            with path.open("rb") as file:
                yield from _labels(file, name)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise UserError(f"{name} is damaged or cut short ({error}): run again to fetch it anew") from error


def _labels(file: Any, name: str) -> Iterator[Label]:
    read, number = 0, 0
    while line := file.readline(LARGEST + 1):
        read, number = read + len(line), number + 1
        if read > LARGEST:
            raise UserError(f"{name} unpacks to more than {LARGEST} bytes: this is no file of labels")
        if line.strip():
            yield _label(line, f"{name}:{number}")


def _label(line: bytes, where: str) -> Label:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error}): the bucket's file is not what it should be") from error
    match row:
        case {"index": int() | str() as index, "description": str(description)} if _is_index(index):
            score = row.get("score", row.get("scoreV1"))
            model = row.get("explanationModelName")
            return Label(
                int(index),
                description.strip(),
                model if isinstance(model, str) and model else None,
                float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None,
            )
        case _:
            raise UserError(f"{where} has no index and description: the bucket's file is not what it should be")


def _is_index(index: int | str) -> bool:
    return not isinstance(index, bool) and str(index).isdecimal() and int(index) < 2**32
