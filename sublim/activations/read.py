"""The stage that writes a model's activations on a file of rows to shards of tensors with a Parquet index.

    activations-00000.safetensors    a tensor for each place, such as `resid_post/14`, with a row for each entry
    index-00000.parquet              row, id, read_at, position, token, tokens, place

`position` and `token` describe the single token that was read. They are null for a mean over `tokens` tokens. `place`
is the entry's row in the tensors of its shard.
"""

import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.activations.config import ActivationsConfig, Reading
from sublim.activations.reading import StreamReader, Text
from sublim.activations.token_places import marked_rows, picks
from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl
from sublim.files.syncing import sync
from sublim.files.tensor_files import write_tensors
from sublim.files.whole_files import whole_file
from sublim.inference.batch_sizes import BatchSizes
from sublim.inference.network import Network
from sublim.inference.packed import packed
from sublim.models.opening import DTYPES, open_model
from sublim.residual.hooks import blocks
from sublim.training.checkpoints import chosen_weights

SCHEMA = {
    "row": pl.Int64,
    "id": pl.Int64,
    "read_at": pl.String,
    "position": pl.Int32,
    "token": pl.Int32,
    "tokens": pl.Int32,
    "place": pl.Int32,
}


class Shard(NamedTuple):
    """One shard: the index of its entries, and their activations by place, such as `resid_post/14`."""

    entries: pl.DataFrame
    tensors: dict[str, Float[Tensor, "n d"]]


class OpenReader(NamedTuple):
    """A loaded model whose activations can be read."""

    reader: StreamReader
    tokenizer: PreTrainedTokenizerBase


@contextmanager
def open_reader(config: Reading, base: Path, weights: Path | None) -> Generator[OpenReader]:
    """A reader of the residual stream of the base, or of the model in `weights`; `config` must be resolved."""
    assert config.attention != "auto"
    with open_model(base, weights, dtype=config.dtype, attention=config.attention) as (model, tokenizer):
        network = Network(model, config.attention)
        tokens = config.tokens or BatchSizes(network, None).tokens()
        reader = StreamReader(network, config.places, tokens)
        with packed(blocks(model)[: reader.last.layer + 1]):
            yield OpenReader(reader, tokenizer)


def read_activations(
    out: Path, config: ActivationsConfig, *, scratch: Path, base: Path, rows: Path, weights: Path | None = None
) -> dict[str, Any]:
    """Stage: writes activations on the rows {id, prompt, answer, system} or {id, text} of rows.jsonl.

    The files are described at the head of this module. The cost is a forward pass up to the last layer. After a crash,
    finished shards are not repeated.
    """
    config = config.resolved()
    total = sum(1 for _ in read_jsonl(rows / "rows.jsonl"))
    if total == 0:
        raise UserError("there are no rows to read: give a file with rows")
    with progress("reading activations", total) as advance:
        shards = range(-(-total // config.shard))
        if not all(_shard_files(scratch, number)[1].exists() for number in shards):
            with open_reader(config, base, chosen_weights(weights, config.weights_update)) as opened:
                every = read_jsonl(rows / "rows.jsonl")
                for number in shards:
                    part = list(islice(every, config.shard))
                    if not _shard_files(scratch, number)[1].exists():
                        _write_shard(scratch, number, read_shard(opened, config, part, number * config.shard))
                        kill_point("activations:shard")
                    advance(len(part))
        for number in shards:
            for path in _shard_files(scratch, number):
                shutil.copyfile(path, out / path.name)
    entries = pl.scan_parquet(sorted(out.glob("index-*.parquet"))).select(pl.len()).collect().item()
    return {"rows": total, "entries": entries, "places": [f"{site}/{layer}" for site, layer in config.places]}


def read_shard(opened: OpenReader, config: ActivationsConfig, rows: Sequence[Mapping[str, Any]], first: int) -> Shard:
    """The activations on `rows`, the first of which is row `first` of its file."""
    marked = marked_rows(opened.tokenizer, rows)
    texts, described = list[Text](), list[tuple[Any, ...]]()
    for number, (row, one) in enumerate(zip(rows, marked, strict=True), start=first):
        entries = [(kind, pick) for kind in config.read_at for pick in picks(one, kind)]
        texts.append(Text(one.ids, [pick for _, pick in entries]))
        for kind, pick in entries:
            alone = (pick[0], one.ids[pick[0]]) if kind in ("all", "last_prompt", "last_answer") else (None, None)
            described.append((number, row.get("id"), kind, *alone, len(pick), len(described)))
    read = opened.reader.read([[text] for text in texts])
    values = {index: entries.values.to(DTYPES[config.keep]) for index, [entries] in read}
    together = torch.cat([values[index] for index in range(len(rows))])
    index = pl.DataFrame(described, schema=SCHEMA, orient="row", strict=False)
    named = enumerate(f"{site}/{layer}" for site, layer in config.places)
    return Shard(index, {name: together[:, number].contiguous() for number, name in named})


def read_shards(payload: Path) -> Iterator[Shard]:
    """The shards of a payload, in order; only one is in memory at a time."""
    for path in sorted(payload.glob("index-*.parquet")):
        yield read_kept(path)


def read_kept(index: Path) -> Shard:
    """The shard whose index has this path."""
    tensors = load_file(index.with_name(index.name.replace("index", "activations")).with_suffix(".safetensors"))
    return Shard(pl.read_parquet(index), tensors)


def _shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"activations-{number:05d}.safetensors", folder / f"index-{number:05d}.parquet"


def _write_shard(folder: Path, number: int, shard: Shard) -> None:
    """Writes the tensors and then the index, so that a shard with an index is complete."""
    tensors, index = _shard_files(folder, number)
    write_tensors(tensors, shard.tensors)
    with whole_file(index) as draft:
        shard.entries.write_parquet(draft)
    sync(folder)
