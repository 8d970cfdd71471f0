"""Which ids a tokenizer knows, and an answer's tokens as text in which none of them goes missing."""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import cast

from transformers import PreTrainedTokenizerBase

LOST = "\ufffd"
"""Stands in an answer for an id that is no token."""


class Vocabulary:
    """The tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = {token for token, found in tokenizer.added_tokens_decoder.items() if found.special}
        self.special = frozenset(added.union(tokenizer.all_special_ids))

    @cached_property
    def known(self) -> frozenset[int]:
        """All ids that are tokens: not always the first ones, for there may be holes among the added tokens."""
        return frozenset(self.tokenizer.get_vocab().values()) | self.tokenizer.added_tokens_decoder.keys()

    def unknown(self, rows: int) -> list[int]:
        """The rows of an output layer of `rows` that belong to no token (Qwen 2.5 has 399 of them), in order."""
        return [token for token in range(rows) if token not in self.known]

    def text(self, tokens: Sequence[int], *, ended: bool, bare: bool = False) -> str:
        """An answer as written. `ended`: whether its last token may be the end of turn, which is not part of it.

        `bare`: without the blanks around it, for an answer whose blanks were forced as the template writes them.
        Any other special token is shown by its name and an id that is no token by a replacement character, so that a
        filter does not take what is left for a clean answer.
        """
        own = tokens[:-1] if ended and tokens and tokens[-1] in self.special else tokens
        if not self.special.isdisjoint(own) or not self.known.issuperset(own):
            runs = groupby(own, self.known.__contains__)
            return "".join(self._decoded([*run]) if known else LOST * len([*run]) for known, run in runs)
        text = self._decoded(tokens, skip_special=True)
        return text.strip() if bare else text

    def _decoded(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        text = self.tokenizer.decode([*tokens], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return cast(str, text)
