"""The tokens an SAE is trained on, a block at a time: of texts in a random order, once or again, or of kept shards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from sublim.activations.read import read_kept
from sublim.core.errors import UserError
from sublim.models.opening import load_tokenizer
from sublim.residual.edits import Place
from sublim.sae.config import TrainSaeConfig
from sublim.sae.stream import Own

STEP = 64
"""Rows tokenised together while a block fills."""


class Cursor(NamedTuple):
    """How far the texts are read: whole passes, and rows (or shards) of the present one."""

    epoch: int
    row: int


class Block(NamedTuple):
    """Tokens that are shuffled together, and where the next ones begin."""

    values: Float[Tensor, "n d"]
    after: Cursor


Blocks = Callable[[Cursor, int], Iterator[Block]]
"""From a place in the texts and the number of blocks before it."""


def counted(rows: list[dict[str, Any]], tokenised: Callable[[list[dict[str, Any]]], list[Own]]) -> int:
    """Own tokens of all rows."""
    if not rows:
        raise UserError("there are no texts to train on: give some")
    parts = (tokenised(rows[at : at + 1024]) for at in range(0, len(rows), 1024))
    return sum(len(own.places) for part in parts for own in part)


def filled(
    rows: list[dict[str, Any]],
    tokenised: Callable[[list[dict[str, Any]]], list[Own]],
    start: Cursor,
    config: TrainSaeConfig,
) -> Iterator[tuple[list[Own], Cursor]]:
    """Rows in a random order, once: as many at a time as have a block of own tokens."""
    if start.epoch:
        return
    row, own, count = start.row, list[Own](), 0
    order = np.random.default_rng([config.seed, 1]).permutation(len(rows))
    while row < len(rows):
        part = [rows[index] for index in order[row : row + STEP]]
        row += len(part)
        own += tokenised(part)
        count = sum(len(each.places) for each in own)
        if count >= config.block or row == len(rows):
            yield own, Cursor(0, row) if row < len(rows) else Cursor(1, 0)
            own = []


def passed_again(scratch: Path, start: Cursor, seed: int) -> Iterator[Block]:
    """The kept blocks in a new order each pass, for ever."""
    epoch, place = (start.epoch, start.row) if start.epoch else (1, 0)
    paths = sorted(scratch.glob("block-*.safetensors"))
    while paths:
        order = np.random.default_rng([seed, epoch, 1]).permutation(len(paths))
        for at in range(place, len(paths)):
            values = load_file(paths[int(order[at])])["values"]
            yield Block(values, Cursor(epoch, at + 1) if at + 1 < len(paths) else Cursor(epoch + 1, 0))
        epoch, place = epoch + 1, 0


def kept(shards: list[Path], special: frozenset[int], place: Place, start: Cursor, seed: int) -> Iterator[Block]:
    """Shards of kept activations in a new order each pass, for ever, without special tokens and the first of a text."""
    if not shards:
        raise UserError("there are no kept activations to train on: give some")
    name, epoch, row = f"{place.site}/{place.layer}", start.epoch, start.row
    while True:
        order = np.random.default_rng([seed, epoch, 1]).permutation(len(shards))
        for at in range(row, len(shards)):
            shard = read_kept(shards[int(order[at])])
            if name not in shard.tensors:
                raise UserError(
                    f"the SAE is to read {name}, the kept activations have {', '.join(shard.tensors)}: read them there"
                )
            entries = shard.entries
            own = [
                where
                for where, position, token in entries.select("place", "position", "token").iter_rows()
                if position is None or (position > 0 and token not in special)
            ]
            after = Cursor(epoch, at + 1) if at + 1 < len(shards) else Cursor(epoch + 1, 0)
            yield Block(shard.tensors[name][own].float(), after)
        epoch, row = epoch + 1, 0


def special_ids(base: Path) -> frozenset[int]:
    """Ids of the tokenizer's special tokens."""
    tokenizer = load_tokenizer(base)
    added = {token for token, found in tokenizer.added_tokens_decoder.items() if found.special}
    return frozenset(added.union(tokenizer.all_special_ids))
