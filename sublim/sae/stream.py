"""The residual stream that SAEs read: a model is run on rows, and the stream is taken at the rows' own tokens.

Own tokens are all but special tokens, the first token of a text (its norm is hundreds of times that of the others), and
the tokens that a chat template puts before every chat.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.activations.read import OpenReader
from sublim.activations.reading import Text
from sublim.activations.token_places import Marked, marked_rows
from sublim.inference.prefix_trees import common_prefix_length


class OwnTokens(NamedTuple):
    """A tokenised row and the indices of its own tokens."""

    marked: Marked
    places: list[int]


@lru_cache(maxsize=1)
def find_opening(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of tokens that a template puts before every chat, from two chats that share nothing else."""
    probes = [{"prompt": text, "answer": "x", "system": None} for text in ("Hello", "7 owls")]
    return common_prefix_length([marked.ids for marked in marked_rows(tokenizer, probes)])


def own_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[OwnTokens]:
    """Tokenises rows and finds their own tokens; a row may have none."""
    found: list[OwnTokens] = []
    for row, marked in zip(rows, marked_rows(tokenizer, rows), strict=True):
        plain_chat = "text" not in row and row.get("system") is None
        first = max(find_opening(tokenizer), 1) if plain_chat else 1
        found.append(OwnTokens(marked, [at for at in range(first, len(marked.ids)) if not marked.special[at]]))
    return found


def streams(opened: OpenReader, rows: Sequence[OwnTokens]) -> Iterator[tuple[int, Float[Tensor, "t p d"]]]:
    """Yields (index of the row, stream at its own tokens), in the order in which the rows are read.

    The stream has the shape (own tokens, sites and layers of the reader, width). Rows without own tokens are skipped.
    """
    wanted = [index for index, row in enumerate(rows) if row.places]
    texts = [[Text(rows[index].marked.ids, [[at] for at in rows[index].places])] for index in wanted]
    for number, [entries] in opened.reader.read(texts):
        yield wanted[number], entries.values


def block_of(opened: OpenReader, rows: Sequence[OwnTokens]) -> Float[Tensor, "n d"]:
    """The stream of all own tokens at the reader's first site and layer, in the order of the rows."""
    found: dict[int, Tensor] = {index: values[:, 0] for index, values in streams(opened, rows)}
    return torch.cat([found[index] for index in sorted(found)])
