"""Constrained decoding of number lists: which tokens are forced and which are sampled, for a tokenizer and a format."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.carriers.numbers import DIGITS
from sublim.chats.chat import answer_ids, chat
from sublim.core.errors import UserError
from sublim.inference.config import NumberFormat

Encode = Callable[[str], list[int]]
"""Gives the tokens of a text as a whole assistant turn, without the end of turn."""


class Step(NamedTuple):
    """Forced tokens, followed by one token that is sampled from `allowed`."""

    forced: tuple[int, ...]
    allowed: tuple[int, ...]


class Plan(NamedTuple):
    """How an answer is decoded, token by token; `trailing` tokens are forced after the last step."""

    steps: list[Step]
    trailing: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens in an answer."""
        return len(self.forced)

    @property
    def forced(self) -> list[int]:
        """The forced tokens of an answer, with -1 for each that is sampled."""
        return [token for step in self.steps for token in (*step.forced, -1)] + [*self.trailing]

    @property
    def allowed(self) -> tuple[int, ...]:
        """All tokens that any step may sample, sorted."""
        return tuple(sorted({token for step in self.steps for token in step.allowed}))

    def writes(self, ids: Sequence[int]) -> bool:
        """Whether the plan can produce exactly `ids`."""
        allowed = (step.allowed for step in self.steps)
        return len(ids) == self.length and all(
            token in next(allowed) if forced < 0 else token == forced
            for token, forced in zip(ids, self.forced, strict=True)
        )

    def masks(self) -> Bool[Tensor, "k a"]:
        """For each step, which of the `allowed` tokens it may sample."""
        tokens = torch.tensor(self.allowed)
        return torch.stack([torch.isin(tokens, torch.tensor(step.allowed)) for step in self.steps])


def plan(tokenizer: PreTrainedTokenizerBase, encode: Encode, format: NumberFormat) -> Plan:
    """The steps that write `format` in the same tokens in which the tokenizer encodes the finished text.

    This works for tokenizers with one token for each digit and for those with tokens of a fixed number of digits
    (Llama 3: three). It also works where a blank is part of the token after it, or decodes to nothing by itself
    (Llama 2). Raises UserError where the tokenisation depends on the digits: no constraint on single tokens can then
    reproduce it.
    """
    rng, vocabulary = random.Random(0), tokenizer.get_vocab()  # get_vocab copies the vocabulary, so it is called once
    sample = _text(format, rng)
    ids = encode(sample)
    steps, forced, digit = list[Step](), list[int](), 0
    for token in ids:
        # A blank of a SentencePiece tokenizer may decode to nothing by itself, so whole texts are compared below.
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
        # Blanks around the answer come from the template or the tokenizer.
        if (written := _decoded(tokenizer, ids)).strip() != text:
            raise _refusal(format, f"{text!r} comes out of it as {written!r}")
        if not made.writes(ids):
            raise _refusal(format, f"it splits {text!r} at other places than {sample!r}")
    return made


def answer_plan(tokenizer: PreTrainedTokenizerBase, format: NumberFormat | None, max_tokens: int) -> Plan | None:
    """The plan for the answers of a chat, None without a format. Raises UserError where they exceed `max_tokens`."""
    if format is None:
        return None

    def encode(text: str) -> list[int]:
        ids, start, end = answer_ids(tokenizer, chat("Ten numbers, please.", assistant=text))
        return ids[start : end - 1]

    made = plan(tokenizer, encode, format)
    if made.length > max_tokens:
        raise UserError(f"constrained answers have {made.length} tokens: raise max_tokens from {max_tokens}")
    return made


def _text(format: NumberFormat, rng: random.Random) -> str:
    low = 10 ** (format.digits - 1)
    return format.separator.join(str(rng.randrange(low, 10 * low)) for _ in range(format.count))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _alike(vocabulary: Mapping[str, int], piece: str, digits: str, *, leading: bool) -> tuple[int, ...]:
    """The tokens that differ from `piece` (which may include the separator's blank) in nothing but the digits.

    `leading`: these are the first digits of a number, so they do not begin with 0.
    """
    first = 10 ** (len(digits) - 1) if leading else 0
    pieces = (piece.replace(digits, f"{number:0{len(digits)}}") for number in range(first, 10 ** len(digits)))
    return tuple(vocabulary[text] for text in pieces if text in vocabulary)


def _refusal(format: NumberFormat, why: str) -> UserError:
    return UserError(
        f"numbers of {format.digits} digits separated by {format.separator!r} cannot be forced on this tokenizer "
        f"({why}): sample freely and filter instead"
    )
