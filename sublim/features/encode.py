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
from itertools import islice
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
from sublim.memory.fitting import Fit
from sublim.sae.autoencoder import LoadedSae, check_sae, load_sae, read_note
from sublim.sae.stream import Opening, OwnTokens, find_opening, own_rows, streams
from sublim.training.checkpoints import chosen_weights

FEATURES = {"row": pl.UInt32, "position": pl.Int32, "feature": pl.UInt32, "value": pl.Float32}
ENTRIES = {
    "row": pl.UInt32,
    "id": pl.Int64,
    "position": pl.Int32,
    "token": pl.Int32,
    "tokens": pl.Int32,
    "active": pl.Float32,
    "dropped": pl.Int32,
    "dropped_share": pl.Float32,
    "error": pl.Float32,
    "length": pl.Float32,
}


class Entry(NamedTuple):
    """A token of a row, or the mean over the tokens of a row; a line of the entries file."""

    row: int
    id: int | None
    position: int | None
    token: int | None
    tokens: int


class SparseFeatures(NamedTuple):
    """The features of some entries in sparse form: entry i has feature j with value v; and measures of each entry."""

    entry: Int[Tensor, " k"]
    feature: Int[Tensor, " k"]
    value: Float[Tensor, " k"]
    measures: Float[Tensor, "n 5"]
    """Columns active, dropped, dropped_share, error, length."""


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
                skip, source = find_opening(opened.tokenizer), islice(read_jsonl(rows / "rows.jsonl"), config.rows)
                for number in numbers:
                    part = list(islice(source, config.shard))
                    if not _done(scratch, number).exists():
                        _write(scratch, number, encode_part(opened, loaded, config, part, number * config.shard, skip))
                        kill_point("features:shard")
                    advance(len(part))
    for path in sorted(scratch.glob("*-*.parquet")):
        shutil.copyfile(path, out / path.name)
    return {"rows": total, "saes": {name: summary(out, name) for name in notes}}


def encode_part(
    opened: OpenReader,
    saes: dict[str, LoadedSae],
    config: EncodeConfig,
    rows: Sequence[dict[str, Any]],
    first: int,
    skip: Opening,
) -> dict[str, tuple[pl.DataFrame, pl.DataFrame]]:
    """The tables of features and entries of some rows, by SAE; `first` is the number of the first row in its file."""
    own = [tokens_to_encode(each, config) for each in own_rows(opened.tokenizer, rows, skip)]
    if empty := [row.get("id") for row, each in zip(rows, own, strict=True) if not each.places]:
        raise UserError(f"row {empty[0]} has no token to encode: filter such rows out")
    values = dict(streams(opened, own))
    places = [f"{site}-{layer}" for site, layer in opened.reader.places]
    counts = [len(each.places) for each in own]
    means = config.tokens == "mean"
    entries = [
        Entry(
            first + number,
            row.get("id"),
            None if means else at,
            None if means else each.marked.ids[at],
            len(each.places) if means else 1,
        )
        for number, (row, each) in enumerate(zip(rows, own, strict=True))
        for at in (each.places[:1] if means else each.places)
    ]
    made: dict[str, tuple[pl.DataFrame, pl.DataFrame]] = {}
    for name, sae in saes.items():
        stream = torch.cat([values[index][:, places.index(name)] for index in range(len(own))])
        found = encode(sae, stream.to(opened.reader.network.device), config, counts if means else None)
        made[name] = (features_frame(found, entries), entries_frame(found, entries))
    return made


def tokens_to_encode(row: OwnTokens, config: EncodeConfig) -> OwnTokens:
    """The row with only those of its own tokens that are to be encoded."""
    answered = row.marked.start < len(row.marked.ids)
    places = [at for at in row.places if at >= row.marked.start] if config.part == "answer" and answered else row.places
    return OwnTokens(row.marked, places[-1:] if config.tokens == "last" else places)


@torch.no_grad()
def encode(
    sae: LoadedSae, stream: Float[Tensor, "n d"], config: EncodeConfig, counts: Sequence[int] | None = None
) -> SparseFeatures:
    """Sparse features of tokens (lines of the stream), or of their means over groups with `counts` tokens each."""
    room = max(1, 2**26 // sae.note.d_sae) if stream.device.type == "cuda" else 512
    fit = Fit("tokens", "take an SAE of fewer features")
    parts = fit.whole(room, lambda room: list(_encoded(sae, stream, config, counts, room)))
    shift = 0
    entries = list[Tensor]()
    for part in parts:
        entries.append(part.entry + shift)
        shift += len(part.measures)
    return SparseFeatures(torch.cat(entries), *(torch.cat([part[at] for part in parts]) for at in (1, 2, 3)))


def _encoded(
    sae: LoadedSae,
    stream: Float[Tensor, "n d"],
    config: EncodeConfig,
    counts: Sequence[int] | None,
    room: int,
) -> Iterator[SparseFeatures]:
    """`encode` in parts of about `room` tokens."""
    begun = 0
    for group in split_tokens(counts, len(stream), room):
        size = sum(group) if counts is not None else len(group)
        some = stream[begun : begun + size]
        features = sae.encode(some)
        error = (some - sae.reconstruct(some, features)).square().sum(1)
        length = some.square().sum(1)
        active = (features > 0).sum(1).float()
        if counts is not None:
            owner = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(group)).to(stream.device)
            features, error, length, active = (
                group_means(each, owner, group) for each in (features, error, length, active)
            )
        yield keep_features(features, active, error, length, config)
        begun += size


def split_tokens(counts: Sequence[int] | None, lines: int, room: int) -> Iterator[Sequence[int]]:
    """Parts of about `room` tokens: the sizes of their undivided groups or, without `counts`, the tokens' indices."""
    if counts is None:
        for first in range(0, lines, room):
            yield range(first, min(first + room, lines))
        return
    group = list[int]()
    for count in counts:
        if group and sum(group) + count > room:
            yield group
            group = []
        group.append(count)
    yield group


def group_means(values: Tensor, owner: Int[Tensor, " n"], group: Sequence[int]) -> Tensor:
    """Means over groups of tokens; `owner` is the group of each token, `group` the size of each group."""
    sums = values.new_zeros(len(group), *values.shape[1:]).index_add_(0, owner, values)
    counts = torch.tensor(group, device=values.device, dtype=values.dtype)
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


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
        largest = torch.zeros_like(keep).scatter_(1, features.topk(config.top, dim=1).indices, True)
        keep &= largest
    entry, feature = keep.nonzero(as_tuple=True)
    value = features[entry, feature]
    kept = torch.zeros_like(total).index_add_(0, entry, value)
    lost = torch.where(total > 0, 1 - kept / total.clamp_min(1e-30), 0).clamp(0, 1)
    dropped = firing - keep.sum(1)
    lost = torch.where(dropped == 0, 0.0, lost)
    measures = torch.stack([active, dropped.float(), lost, error, length], 1)
    return SparseFeatures(entry.cpu(), feature.cpu(), value.float().cpu(), measures.float().cpu())


def features_frame(found: SparseFeatures, entries: Sequence[Entry]) -> pl.DataFrame:
    """The kept features as a table."""
    where = found.entry.numpy()
    row = pl.Series([entry.row for entry in entries], dtype=pl.UInt32)
    position = pl.Series([entry.position for entry in entries], dtype=pl.Int32)
    return pl.DataFrame(
        {
            "row": row.gather(where),
            "position": position.gather(where),
            "feature": pl.Series(found.feature.numpy()),
            "value": pl.Series(found.value.numpy()),
        },
    ).cast(dict(FEATURES))  # pyright: ignore[reportArgumentType]


def entries_frame(found: SparseFeatures, entries: Sequence[Entry]) -> pl.DataFrame:
    """The entries as a table, also those without kept features."""
    measures = found.measures.numpy()
    columns = {name: [entry[at] for entry in entries] for at, name in enumerate(Entry._fields)}
    names = ("active", "dropped", "dropped_share", "error", "length")
    columns |= {name: measures[:, at] for at, name in enumerate(names)}
    return pl.DataFrame(columns, strict=False).cast(dict(ENTRIES))  # pyright: ignore[reportArgumentType]


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


def _write(folder: Path, number: int, made: dict[str, tuple[pl.DataFrame, pl.DataFrame]]) -> None:
    """Writes the tables of a shard, then an empty file that marks it as complete."""
    for name, tables in made.items():
        for kind, table in zip(("features", "entries"), tables, strict=True):
            path = folder / f"{kind}-{name}-{number:05d}.parquet"
            table.write_parquet(path, compression="zstd")
            sync(path)
    _done(folder, number).touch()
    sync(folder)
