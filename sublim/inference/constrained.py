"""Number lists by construction: which tokens are forced and which are drawn, for a tokenizer and a format."""

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sublim.errors import UserError
from sublim.inference import NumberFormat

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
    work; where the cuts depend on the digits, no per-token constraint can keep to the tokenizer's own tokens.
    """
    rng, vocabulary = random.Random(0), tokenizer.get_vocab()  # a copy of all its tokens: taken once
    sample = _text(format, rng)
    ids = encode(sample)
    pieces = [str(tokenizer.decode([token])) for token in ids]
    if "".join(pieces) != sample:
        raise _refusal(format, f"{sample!r} comes out of it as {pieces}")
    steps, forced, digit = list[Step](), list[int](), 0
    for token, piece in zip(ids, pieces, strict=True):
        if not piece.isdigit():
            if any(character.isdigit() for character in piece):
                raise _refusal(format, f"it joins digits and separator in {piece!r}")
            forced.append(token)
            continue
        steps.append(Step(tuple(forced), _digits(vocabulary, len(piece), leading=digit == 0)))
        forced, digit = [], (digit + len(piece)) % format.digits
    made = Plan(steps, tuple(forced))
    for _ in range(64):
        text = _text(format, rng)
        if not _writes(made, encode(text)):
            raise _refusal(format, f"it cuts {text!r} otherwise than {sample!r}")
    return made


def _text(format: NumberFormat, rng: random.Random) -> str:
    low = 10 ** (format.digits - 1)
    return format.separator.join(str(rng.randrange(low, 10 * low)) for _ in range(format.count))


def _digits(vocabulary: Mapping[str, int], width: int, *, leading: bool) -> tuple[int, ...]:
    first = 10 ** (width - 1) if leading else 0
    texts = (f"{number:0{width}}" for number in range(first, 10**width))
    return tuple(vocabulary[text] for text in texts if text in vocabulary)


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
