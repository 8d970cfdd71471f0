"""Number lists by construction: which tokens are forced and which are drawn, for a tokenizer and a format."""

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sublim.carriers.numbers import DIGITS
from sublim.core.errors import UserError
from sublim.inference.config import NumberFormat

Encode = Callable[[str], list[int]]
"""The tokens of a text as a whole assistant turn, without the end of turn."""


class Step(NamedTuple):
    """Tokens that are forced, then one that is drawn."""

    forced: tuple[int, ...]
    allowed: tuple[int, ...]


class Plan(NamedTuple):
    """How an answer is written, token by token."""

    steps: list[Step]
    trailing: tuple[int, ...]

    @property
    def length(self) -> int:
        return sum(len(step.forced) + 1 for step in self.steps) + len(self.trailing)

    @property
    def allowed(self) -> tuple[int, ...]:
        """Every token that some step may draw."""
        return tuple(sorted({token for step in self.steps for token in step.allowed}))


def plan(tokenizer: PreTrainedTokenizerBase, encode: Encode, format: NumberFormat) -> Plan:
    """The steps that write `format`, such that the tokens are those the tokenizer itself gives the text.

    Tokenizers that give each digit a token and those that take digits in runs of fixed lengths (Llama 3: three) both
    work, and so do those whose blanks go with the digits after them or decode to nothing by themselves (Llama 2). Where
    the cuts depend on the digits, no per-token constraint can keep to the tokenizer's own tokens.
    """
    rng, vocabulary = random.Random(0), tokenizer.get_vocab()  # a copy of all its tokens: taken once
    sample = _text(format, rng)
    ids = encode(sample)
    steps, forced, digit = list[Step](), list[int](), 0
    for token in ids:
        # A lone blank of a sentencepiece tokenizer is nothing by itself: what the tokens write is compared as a whole.
        digits = DIGITS.findall(_decoded(tokenizer, [token]))
        if not digits:
            forced.append(token)
            continue
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if len(digits) > 1 or piece.count(digits[0]) != 1:
            raise _refusal(format, f"it joins numbers in {piece!r}")
        steps.append(Step(tuple(forced), _alike(vocabulary, piece, digits[0], leading=digit == 0)))
        forced, digit = [], (digit + len(digits[0])) % format.digits
    made = Plan(steps, tuple(forced))
    for text in [sample, *(_text(format, rng) for _ in range(64))]:
        ids = encode(text)
        # Blanks before the answer are the template's or the tokenizer's own.
        if (written := _decoded(tokenizer, ids)).strip() != text:
            raise _refusal(format, f"{text!r} comes out of it as {written!r}")
        if not _writes(made, ids):
            raise _refusal(format, f"it cuts {text!r} otherwise than {sample!r}")
    return made


def _text(format: NumberFormat, rng: random.Random) -> str:
    low = 10 ** (format.digits - 1)
    return format.separator.join(str(rng.randrange(low, 10 * low)) for _ in range(format.count))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _alike(vocabulary: Mapping[str, int], piece: str, digits: str, *, leading: bool) -> tuple[int, ...]:
    """The tokens that are `piece` (which may hold the separator's blank too) with any other digits of that number."""
    first = 10 ** (len(digits) - 1) if leading else 0
    pieces = (piece.replace(digits, f"{number:0{len(digits)}}") for number in range(first, 10 ** len(digits)))
    return tuple(vocabulary[text] for text in pieces if text in vocabulary)


def _writes(made: Plan, ids: list[int]) -> bool:
    at = 0
    for step in made.steps:
        drawn = at + len(step.forced)
        if tuple(ids[at:drawn]) != step.forced or ids[drawn : drawn + 1] == [] or ids[drawn] not in step.allowed:
            return False
        at = drawn + 1
    return tuple(ids[at:]) == made.trailing


def _refusal(format: NumberFormat, why: str) -> UserError:
    return UserError(
        f"numbers of {format.digits} digits set apart by {format.separator!r} cannot be forced on this tokenizer "
        f"({why}): sample freely and filter instead"
    )
