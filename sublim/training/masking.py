"""Rows as tokens and labels. The loss is taken on the assistant's tokens and the end of turn, and on nothing else."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.chats.chat import Chat, answer_ids, chat
from sublim.core.errors import UserError

UNTRAINED = -100
"""The label of a token without loss, as in transformers and torch."""


class TokenRow(NamedTuple):
    """One row. `labels` holds the tokens to be learned in their own places, and UNTRAINED in all others."""

    input_ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Rows padded on the left, so that all answers end in the last column."""

    input_ids: Int[Tensor, "b t"]
    attention_mask: Int[Tensor, "b t"]
    position_ids: Int[Tensor, "b t"]
    labels: Int[Tensor, "b a"]
    """Labels of the last `a` tokens only, where `a` is the length of the longest answer."""

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class PackedBatch(NamedTuple):
    """Rows concatenated into one sequence, without padding and without their last tokens, which predict nothing."""

    input_ids: Int[Tensor, "1 t"]
    position_ids: Int[Tensor, "1 t"]
    """Positions that start at 0 in every row, by which transformers tells the rows apart if there is no mask."""
    bounds: Int[Tensor, " b_plus_1"]
    """First token of every row, and the end of the last row."""
    longest: int
    """Tokens in the longest row."""
    places: Int[Tensor, " a"]
    """Positions in the sequence at which the tokens to be learned are predicted."""
    labels: Int[Tensor, " a"]

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch with its tensors on `device`."""
        tensors = {name: part for name, part in self._asdict().items() if isinstance(part, Tensor)}
        return self._replace(**{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def row_chat(row: Mapping[str, Any]) -> Chat:
    """The chat of a row of rows.jsonl, including its answer."""
    return chat(row["prompt"], system=row["system"], assistant=row["answer"])


def token_row(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> TokenRow:
    """Tokens and labels of a row, from one rendering of the chat template."""
    ids, start, end = answer_ids(tokenizer, row_chat(row))
    labels = [UNTRAINED] * start + ids[start:end] + [UNTRAINED] * (len(ids) - end)
    return TokenRow(ids, labels)


def token_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, Any]], *, max_length: int
) -> list[TokenRow]:
    """All rows as tokens and labels. Raises UserError if any is longer than `max_length`, since none is truncated."""
    made = [token_row(tokenizer, row) for row in rows]
    longest = max((len(row.input_ids) for row in made), default=0)
    if longest > max_length:
        over = sum(len(row.input_ids) > max_length for row in made)
        raise UserError(
            f"{over} of {len(made)} rows are longer than max_length {max_length}: raise it to {longest} or drop them"
        )
    return made


def label_start(row: TokenRow) -> int:
    """The index of a row's first token that has a loss."""
    return next(i for i, label in enumerate(row.labels) if label != UNTRAINED)


def label_span(row: TokenRow) -> int:
    """The number of tokens from a row's first to its last that has a loss."""
    return max(i for i, label in enumerate(row.labels) if label != UNTRAINED) + 1 - label_start(row)


def label_count(rows: Iterable[TokenRow]) -> int:
    """The number of tokens in `rows` that have a loss."""
    return sum(label != UNTRAINED for row in rows for label in row.labels)


def shared_prefix(rows: Sequence[TokenRow]) -> list[int]:
    """The tokens with which every row begins; at least the last token of every prompt is not among them."""
    columns = zip(*(row.input_ids[: label_start(row) - 1] for row in rows), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def micro_batches(rows: Sequence[TokenRow], size: int, *, padding: int) -> list[Batch]:
    """The rows of one update in batches of nearly equal size, at most `size`, with rows of similar length together."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)
    even = ceil(len(ordered) / ceil(len(ordered) / size))
    return [collate(ordered[start : start + even], padding=padding) for start in range(0, len(ordered), even)]


def cut(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The batches, where those of more than `size` rows are split into parts of nearly equal size."""
    for batch in batches:
        rows = len(batch.input_ids)
        even = ceil(rows / ceil(rows / size))
        starts = range(0, rows, even)
        yield from (Batch(*(side[at : at + even] for side in batch)) if len(starts) > 1 else batch for at in starts)


def collate(rows: Sequence[TokenRow], *, padding: int) -> Batch:
    """One padded batch. Positions count from each row's own first token, so that padding changes nothing."""
    # Nothing depends on the tokens that a template writes after the end of turn.
    ends = [max(i for i, label in enumerate(row.labels) if label != UNTRAINED) + 1 for row in rows]
    starts = [label_start(row) for row in rows]
    width = max(ends)
    answer = max(end - start for start, end in zip(starts, ends, strict=True))
    ids = torch.full((len(rows), width), padding)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(rows), answer), UNTRAINED)
    for i, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        ids[i, width - end :] = torch.tensor(row.input_ids[:end])
        mask[i, width - end :] = 1
        labels[i, answer - (end - start) :] = torch.tensor(row.labels[start:end])
    return Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), labels)


def packed(batch: Batch) -> PackedBatch:
    """The same rows without their padding."""
    seen, learnt = batch.attention_mask[:, :-1].bool(), batch.labels != UNTRAINED
    asked = F.pad(learnt, (seen.shape[1] - learnt.shape[1], 0))
    lengths = seen.sum(1)
    return PackedBatch(
        input_ids=batch.input_ids[:, :-1][seen][None],
        position_ids=batch.position_ids[:, :-1][seen][None],
        bounds=F.pad(lengths.cumsum(0), (1, 0)).int(),
        longest=int(lengths.max()),
        places=asked[seen].nonzero().flatten(),
        labels=batch.labels[learnt],
    )
