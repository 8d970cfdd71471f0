"""The stream as SAEs see it: a model read on rows, at the tokens that are somebody's own, block by block.

Left out are special tokens, the first token of a text (its stream is hundreds of times longer than the others') and
what a chat template puts before every chat alike. `tensor in set` is always false, so ids are compared as integers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.activations.read import OpenReader
from sublim.activations.reading import Text
from sublim.activations.token_places import Marked, marked_rows
from sublim.inference.scoring import common


class Opening(NamedTuple):
    """How many tokens come before anybody's own: of a chat without a system prompt, and of any other text."""

    chat: int
    text: int


class OwnTokens(NamedTuple):
    """A tokenised row and the places of its own tokens."""

    marked: Marked
    places: list[int]


def opening(tokenizer: PreTrainedTokenizerBase) -> Opening:
    """The tokens that a template puts before every chat, found by two chats that have nothing else in common."""
    probes = [{"prompt": text, "answer": "x", "system": None} for text in ("Hello", "7 owls")]
    before = common([marked.ids for marked in marked_rows(tokenizer, probes)])
    return Opening(max(before, 1), 1)


def own_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], skip: Opening) -> list[OwnTokens]:
    """The rows' tokens; a row may have none of its own."""
    found: list[OwnTokens] = []
    for row, marked in zip(rows, marked_rows(tokenizer, rows), strict=True):
        first = skip.chat if "text" not in row and row.get("system") is None else skip.text
        found.append(OwnTokens(marked, [at for at in range(first, len(marked.ids)) if not marked.special[at]]))
    return found


def streams(opened: OpenReader, rows: Sequence[OwnTokens]) -> Iterator[tuple[int, Float[Tensor, "t p d"]]]:
    """(index of the row, the stream at each of its places, for every place of the reader), in the order read."""
    wanted = [index for index, row in enumerate(rows) if row.places]
    texts = [[Text(rows[index].marked.ids, [[at] for at in rows[index].places])] for index in wanted]
    for number, [entries] in opened.reader.read(texts):
        yield wanted[number], entries.values


def block_of(opened: OpenReader, rows: Sequence[OwnTokens]) -> Float[Tensor, "n d"]:
    """The stream at the first place of all own tokens, in the order of the rows, however they were batched."""
    found: dict[int, Tensor] = {index: values[:, 0] for index, values in streams(opened, rows)}
    return torch.cat([found[index] for index in sorted(found)])
