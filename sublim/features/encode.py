"""Encoding rows with SAEs, on the device where the model runs. Features are stored sparsely, without zeros.

    features-<sae>-00000.parquet    row, position, feature, value: one line for each feature that is kept
    entries-<sae>-00000.parquet     row, id, position, token, tokens, active, dropped, dropped_share, error, length

`row` is the number of the row in its file. `position` is the index of the token in its text, or null for a mean over
`tokens` tokens. `active` is the number of features that fire (for means, its mean over tokens), `dropped` the number of
those that are not kept, and `dropped_share` their share of the sum of all values. `error` and `length` are the squared
norms of the reconstruction error and of the residual stream, as means over tokens.
"""

import shutil
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim.activations.config import Reading
from sublim.activations.read import OpenReader, open_reader
from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.features.config import EncodeConfig
from sublim.files.jsonl import read_jsonl
from sublim.files.syncing import sync
from sublim.memory.fitting import MemoryFit
from sublim.sae.autoencoder import LoadedSae, check_sae, load_sae, read_note
from sublim.sae.stream import OwnTokens, own_rows, streams
from sublim.training.checkpoints import chosen_weights

ENTRIES = {"row": pl.UInt32, "id": pl.Int64, "position": pl.Int32, "token": pl.Int32, "tokens": pl.Int32}
MEASURES = pl.Schema(
    {
        "active": pl.Float32,
        "dropped": pl.Int32,
        "dropped_share": pl.Float32,
        "error": pl.Float32,
        "length": pl.Float32,
    }
)


class SparseFeatures(NamedTuple):
    """The features of some entries in sparse form: entry i has feature j with value v; and measures of each entry."""

    entry: Int[Tensor, " k"]
    feature: Int[Tensor, " k"]
    value: Float[Tensor, " k"]
    measures: Float[Tensor, "n 5"]
    """The columns of MEASURES."""


def encode_features(
    out: Path,
    config: EncodeConfig,
    *,
    scratch: Path,
    base: Path,
    rows: Path,
    saes: dict[str, Path],
    weights: Path | None = None,
) -> dict[str, Any]:
    """Stage: writes the files that this module describes from rows.jsonl, for all SAEs of a model in one pass.

    Costs a forward pass up to the layer of the last SAE. Memory grows with the shard. Resumes from the last complete
    shard. Raises UserError where an SAE does not fit the model.
    """
    config = config.resolved()
    notes = {name: read_note(payload) for name, payload in sorted(saes.items())}
    for name, note in notes.items():
        check_sae(note, base)
        if name != note.name:
            raise UserError(f"the SAE given as {name} reads {note.name}: name it so")
    reading = Reading(
        sites=tuple({note.site for note in notes.values()}),
        layers=tuple({note.layer for note in notes.values()}),
        dtype=config.dtype,
        attention=config.attention,
        tokens=config.read,
    )
    total = sum(1 for _ in islice(read_jsonl(rows / "rows.jsonl"), config.rows))
    numbers = range(-(-total // config.shard))
    with progress("encoding rows", total) as advance:
        if not all(_done(scratch, number).exists() for number in numbers):
            with open_reader(reading, base, chosen_weights(weights, config.weights_update)) as opened:
                device = opened.reader.network.device
                loaded = {name: load_sae(payload, device) for name, payload in sorted(saes.items())}
                source = islice(read_jsonl(rows / "rows.jsonl"), config.rows)
                for number in numbers:
                    part = list(islice(source, config.shard))
                    if not _done(scratch, number).exists():
                        _write(scratch, number, encode_part(opened, loaded, config, part, number * config.shard))
                        kill_point("features:shard")
                    advance(len(part))
    for path in sorted(scratch.glob("*-*.parquet")):
        shutil.copyfile(path, out / path.name)
    return {"rows": total, "saes": {name: summary(out, name) for name in notes}}


def encode_part(
    opened: OpenReader, saes: dict[str, LoadedSae], config: EncodeConfig, rows: Sequence[dict[str, Any]], first: int
) -> dict[str, pl.DataFrame]:
    """The tables of features and entries of some rows, by the beginning of their files' names.

    `first` is the number of the first row in its file.
    """
    own = [tokens_to_encode(each, config) for each in own_rows(opened.tokenizer, rows)]
    if empty := [row.get("id") for row, each in zip(rows, own, strict=True) if not each.places]:
        raise UserError(f"row {empty[0]} has no token to encode: filter such rows out")
    values = dict(streams(opened, own))
    places = [f"{site}-{layer}" for site, layer in opened.reader.places]
    counts = [len(each.places) for each in own] if config.tokens == "mean" else None
    lines: list[tuple[int | None, ...]] = []
    for number, (row, each) in enumerate(zip(rows, own, strict=True), first):
        if counts is not None:
            lines.append((number, row.get("id"), None, None, len(each.places)))
        else:
            lines += [(number, row.get("id"), at, each.marked.ids[at], 1) for at in each.places]
    entries = pl.DataFrame(lines, schema=ENTRIES, orient="row")
    made: dict[str, pl.DataFrame] = {}
    for name, sae in saes.items():
        stream = torch.cat([values[index][:, places.index(name)] for index in range(len(own))])
        found = encode(sae, stream.to(opened.reader.network.device), config, counts)
        made[f"features-{name}"], made[f"entries-{name}"] = tables(found, entries)
    return made


def tokens_to_encode(row: OwnTokens, config: EncodeConfig) -> OwnTokens:
    """The row with only those of its own tokens that are to be encoded."""
    answered = row.marked.start < len(row.marked.ids)
    places = [at for at in row.places if at >= row.marked.start] if config.part == "answer" and answered else row.places
    return OwnTokens(row.marked, places[-1:] if config.tokens == "last" else places)


@torch.no_grad()
def encode(
    sae: LoadedSae, stream: Float[Tensor, "n d"], config: EncodeConfig, counts: Sequence[int] | None
) -> SparseFeatures:
    """Sparse features of tokens (lines of the stream), or of their means over groups with `counts` tokens each."""
    room = max(1, 2**26 // sae.note.d_sae) if stream.device.type == "cuda" else 512
    fit = MemoryFit("tokens", "take an SAE of fewer features")
    parts = fit.whole(room, lambda room: list(_encoded(sae, stream, config, counts, room)))
    before = accumulate((len(part.measures) for part in parts), initial=0)
    shifted = (part._replace(entry=part.entry + shift) for part, shift in zip(parts, before, strict=False))
    return SparseFeatures(*map(torch.cat, zip(*shifted, strict=True)))


def _encoded(
    sae: LoadedSae,
    stream: Float[Tensor, "n d"],
    config: EncodeConfig,
    counts: Sequence[int] | None,
    room: int,
) -> Iterator[SparseFeatures]:
    """`encode` in parts of about `room` tokens."""
    for group, some in split_tokens(stream, counts, room):
        features = sae.encode(some)
        error = (some - sae.reconstruct(some, features)).square().sum(1)
        length = some.square().sum(1)
        active = (features > 0).sum(1).float()
        if group is not None:
            sizes = torch.tensor(group, device=stream.device)
            features, error, length, active = (group_means(each, sizes) for each in (features, error, length, active))
        yield keep_features(features, active, error, length, config)


def split_tokens(
    stream: Float[Tensor, "n d"], counts: Sequence[int] | None, room: int
) -> Iterator[tuple[list[int] | None, Float[Tensor, "m d"]]]:
    """Parts of about `room` tokens, each with the sizes of its groups, which are not divided (None: no groups)."""
    if counts is None:
        yield from ((None, part) for part in stream.split(room))
        return
    groups: list[list[int]] = [[]]
    for count in counts:
        if groups[-1] and sum(groups[-1]) + count > room:
            groups.append([])
        groups[-1].append(count)
    yield from zip(groups, stream.split([sum(group) for group in groups]), strict=True)


def group_means(values: Tensor, sizes: Int[Tensor, " g"]) -> Tensor:
    """Means over groups of tokens of these sizes."""
    owner = torch.arange(len(sizes), device=values.device).repeat_interleave(sizes, output_size=len(values))
    sums = values.new_zeros(len(sizes), *values.shape[1:]).index_add_(0, owner, values)
    return sums / sizes.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))


def keep_features(
    features: Float[Tensor, "n f"],
    active: Float[Tensor, " n"],
    error: Float[Tensor, " n"],
    length: Float[Tensor, " n"],
    config: EncodeConfig,
) -> SparseFeatures:
    """The features to keep of dense ones, on the CPU, in the order of entries and features."""
    firing, total = (features > 0).sum(1), features.sum(1)
    keep = features > config.threshold
    if config.top is not None and config.top < features.shape[1]:
        keep &= torch.zeros_like(keep).scatter_(1, features.topk(config.top, dim=1).indices, True)
    entry, feature = keep.nonzero(as_tuple=True)
    value = features[entry, feature]
    kept = torch.zeros_like(total).index_add_(0, entry, value)
    dropped = firing - keep.sum(1)
    lost = torch.where(dropped > 0, 1 - kept / total.clamp_min(1e-30), 0).clamp(0, 1)
    measures = torch.stack([active, dropped.float(), lost, error, length], 1)
    return SparseFeatures(entry.cpu(), feature.cpu(), value.float().cpu(), measures.float().cpu())


def tables(found: SparseFeatures, entries: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The kept features, and the entries with their measures, also those without kept features."""
    features = entries.select("row", "position")[found.entry.numpy()].with_columns(
        pl.Series("feature", found.feature.numpy(), dtype=pl.UInt32), pl.Series("value", found.value.numpy())
    )
    measures = pl.DataFrame(found.measures.numpy(), schema=list(MEASURES), orient="row").cast(MEASURES)
    return features, entries.hstack(measures)


def summary(payload: Path, name: str) -> dict[str, Any]:
    """How much was encoded with one SAE, and how much of it was dropped: means and sums over all entries."""
    found = (
        pl.scan_parquet(payload / f"entries-{name}-*.parquet")
        .select(
            pl.len().alias("entries"),
            pl.col("active").mean(),
            pl.col("dropped").sum(),
            pl.col("dropped_share").mean(),
            (pl.col("error").sum() / pl.col("length").sum()).alias("unexplained"),
        )
        .collect()
    )
    return found.to_dicts()[0]


def _done(folder: Path, number: int) -> Path:
    return folder / f"done-{number:05d}"


def _write(folder: Path, number: int, made: dict[str, pl.DataFrame]) -> None:
    """Writes the tables of a shard, then an empty file that marks it as complete."""
    for name, table in made.items():
        path = folder / f"{name}-{number:05d}.parquet"
        table.write_parquet(path, compression="zstd")
        sync(path)
    _done(folder, number).touch()
    sync(folder)
