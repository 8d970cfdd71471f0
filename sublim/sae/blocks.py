"""The tokens that an SAE is trained on, a block at a time: from texts, or from shards of the activation stage."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.activations.read import read_kept
from sublim.core.errors import UserError
from sublim.residual.edits import Place
from sublim.sae.config import TrainSaeConfig
from sublim.sae.stream import OwnTokens, own_rows

STEP = 64
"""Rows that are tokenised together while a block is filled."""


class Cursor(NamedTuple):
    """How far the data is read: complete passes, and rows (or shards or blocks) of the present pass."""

    epoch: int
    row: int


class TokenBlock(NamedTuple):
    """The stream at tokens that are shuffled together, and the cursor behind them."""

    values: Float[Tensor, "n d"]
    after: Cursor


Blocks = Callable[[Cursor, int], Iterator[TokenBlock]]
"""Yields blocks from a cursor on; the second argument is the number of blocks before it."""


def count_own_tokens(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> int:
    """The number of own tokens (see `sublim.sae.stream`) in all rows. Raises UserError if there are no rows."""
    if not rows:
        raise UserError("there are no texts to train on: give some")
    parts = (own_rows(tokenizer, rows[at : at + 1024]) for at in range(0, len(rows), 1024))
    return sum(len(own.places) for part in parts for own in part)


def fill_blocks(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], start: Cursor, config: TrainSaeConfig
) -> Iterator[tuple[list[OwnTokens], Cursor]]:
    """Yields all rows once, in a random order: at a time, as many as fill a block with own tokens."""
    if start.epoch:
        return
    row, own, count = start.row, list[OwnTokens](), 0
    order = np.random.default_rng([config.seed, 1]).permutation(len(rows))
    while row < len(rows):
        part = [rows[index] for index in order[row : row + STEP]]
        row += len(part)
        own += own_rows(tokenizer, part)
        count = sum(len(each.places) for each in own)
        if count >= config.block or row == len(rows):
            yield own, Cursor(0, row) if row < len(rows) else Cursor(1, 0)
            own = []


def saved_blocks(scratch: Path, start: Cursor, seed: int) -> Iterator[TokenBlock]:
    """The saved blocks of the first pass, in a new random order in each further pass, without end."""
    paths = sorted(scratch.glob("block-*.safetensors"))
    for index, after in _passes(len(paths), start if start.epoch else Cursor(1, 0), seed):
        yield TokenBlock(load_file(paths[index])["values"], after)


def shard_blocks(
    shards: list[Path], special: frozenset[int], place: Place, start: Cursor, seed: int
) -> Iterator[TokenBlock]:
    """Shards of the activation stage in a new random order in each pass, without end.

    Special tokens and the first token of each text are left out. Raises UserError where the shards lack `place`.
    """
    if not shards:
        raise UserError("there are no activations to train on: give some")
    name = f"{place.site}/{place.layer}"
    for index, after in _passes(len(shards), start, seed):
        shard = read_kept(shards[index])
        if name not in shard.tensors:
            raise UserError(
                f"the SAE is for {name}, the activations are of {', '.join(shard.tensors)}: keep those of {name}"
            )
        own = [
            where
            for where, position, token in shard.entries.select("place", "position", "token").iter_rows()
            if position is None or (position > 0 and token not in special)
        ]
        yield TokenBlock(shard.tensors[name][own].float(), after)


def _passes(items: int, start: Cursor, seed: int) -> Iterator[tuple[int, Cursor]]:
    """Indices below `items` in a new random order in each pass, without end, each with the cursor behind it."""
    for epoch in itertools.count(start.epoch) if items else ():
        order = np.random.default_rng([seed, epoch, 1]).permutation(items)
        for at in range(start.row if epoch == start.epoch else 0, items):
            yield int(order[at]), Cursor(epoch, at + 1) if at + 1 < items else Cursor(epoch + 1, 0)
