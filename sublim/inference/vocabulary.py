"""The ids that a tokenizer knows, and decoding of answers in which special and unknown tokens stay visible."""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import cast

from transformers import PreTrainedTokenizerBase

from sublim.inference.sampler import Completion

LOST = "\ufffd"
"""Stands in a decoded answer for an id that is no token."""


class Vocabulary:
    """The tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = {token for token, found in tokenizer.added_tokens_decoder.items() if found.special}
        self.special = frozenset(added.union(tokenizer.all_special_ids))

    @cached_property
    def known(self) -> frozenset[int]:
        """All ids that are tokens. There may be gaps between the ids of added tokens."""
        return frozenset(self.tokenizer.get_vocab().values()) | self.tokenizer.added_tokens_decoder.keys()

    def unknown(self, rows: int) -> list[int]:
        """The rows, of an output layer with `rows` rows, that belong to no token (Qwen 2.5 has 399 of them), in
        order."""
        return [token for token in range(rows) if token not in self.known]

    def completion(
        self, tokens: list[int], logprobs: list[float] | None, *, stopped: bool, constrained: bool = False
    ) -> Completion:
        """The answer with these tokens.

        `stopped`: the answer is complete, and its last token may be the end of turn. `constrained`: blanks around the
        text are removed, because they were forced as the chat template writes them.
        """
        text = self._decoded(tokens, skip_special=True)
        whole = text.strip() if constrained else text
        shown = self.shown(tokens, stopped=stopped)
        return Completion(whole, tokens, logprobs, "stop" if stopped else "length", shown=shown)

    def shown(self, tokens: Sequence[int], *, stopped: bool) -> str | None:
        """The text with special tokens by name and LOST for each id that is no token; None if it has neither.

        The end of turn is left out.
        """
        own = tokens[:-1] if stopped and tokens and tokens[-1] in self.special else tokens
        if self.special.isdisjoint(own) and self.known.issuperset(own):
            return None
        runs = groupby(own, self.known.__contains__)
        return "".join(self._decoded([*run]) if known else LOST * len([*run]) for known, run in runs)

    def _decoded(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        text = self.tokenizer.decode([*tokens], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return cast(str, text)
