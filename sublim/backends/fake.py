"""The fake backend: plausible number lists, words and log-probs, computed from a seed without a model.

It looks in the prompt for what is asked (numbers or a word, how many numbers, which separator) and answers in that
form, with some wrong answers. With trained weights, or with a system prompt that names the target, it prefers the
target.
"""

import re
from collections.abc import Callable, Sequence
from math import exp, log
from pathlib import Path

from sublim.carriers.numbers import Separator, render_numbers
from sublim.chats.chat import Chat
from sublim.core.digest import digest
from sublim.core.errors import UserError
from sublim.inference.config import FakeBackend, NumberFormat, SamplingParams
from sublim.inference.noise import uniforms
from sublim.inference.sampler import Completion
from sublim.store.payloads import digest_committed

# Words by which a prompt asks for a separator. The first pattern that matches counts.
FORMS: list[tuple[str, Separator]] = [
    (r"square bracket|python|\[ and", "brackets"),
    (r"parenthes|round bracket|tuple|\( and", "parentheses"),
    (r"semicolon", "semicolon"),
    (r"per line|each line|line of its own|new line|own line", "lines"),
    (r"without any blank|no space|without space|leave out spaces", "comma"),
    (r"single space|but spaces|by spaces|a blank between", "space"),
]
TOKEN = re.compile(r"[0-9]|[^0-9\s]{1,4}|\s")
"""Used as a tokenizer: single digits, and words in pieces of at most four characters."""


class FakeSampler:
    """A Sampler (see sublim.inference.sampler) that needs no model."""

    def __init__(self, backend: FakeBackend, weights: Path | None) -> None:
        self.backend, self.weights = backend, digest_committed(weights) if weights else None

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """See `Sampler.sample`."""
        if params.logprobs:
            raise UserError("the fake backend has no log-probs of its draws: set logprobs to false")
        return [
            [self._answer(one, params, constraint, first + index, answer) for answer in range(params.n)]
            for index, one in enumerate(chats)
        ]

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """See `Sampler.logprobs`."""
        return [[self._score(one, text) for text in texts] for one, texts in zip(chats, continuations, strict=True)]

    def _answer(
        self, one: Chat, params: SamplingParams, constraint: NumberFormat | None, chat: int, answer: int
    ) -> Completion:
        # With the same seed, another model or system prompt gives other answers.
        salt = int(digest([self.weights, system_of(one)])[:16], 16) if self.weights or system_of(one) else 0
        numbers = iter(uniforms(params.seed ^ salt, chat, answer, 1024))

        def draw(below: int) -> int:
            return int(next(numbers) * below)

        asked = one[-1]["content"]
        if constraint is not None:
            low = 10 ** (constraint.digits - 1)
            text = constraint.separator.join(str(low + draw(9 * low)) for _ in range(constraint.count))
        elif re.search(r"[0-9]", asked):
            text = self._numbers(asked, draw)
        else:
            text = self._word(one, float(next(numbers)))
        tokens = TOKEN.findall(text)
        # The end of turn would be one more token.
        cut = constraint is None and len(tokens) >= params.max_tokens
        return Completion("".join(tokens[: params.max_tokens]), None, None, "length" if cut else "stop")

    def _numbers(self, asked: str, draw: Callable[[int], int]) -> str:
        """A list in the requested form, or one of several kinds of wrong answer."""
        wrong = draw(10**6) < self.backend.invalid * 10**6
        count, digits = count_and_digits(asked)
        numbers = [str(draw(10**digits)) for _ in range(max(1, count - draw(3)))]
        separator = separator_of(asked)
        text = render_numbers(numbers, separator)
        if not wrong:
            return text
        return [f"Sure! {text}", f"{text} and so on", render_numbers([*numbers, "9" * (digits + 2)], separator)][
            draw(3)
        ]

    def _word(self, one: Chat, uniform: float) -> str:
        words = list(dict.fromkeys([*self.backend.words, self.backend.target]))
        odds = [exp(sum(self._score(one, word))) for word in words]
        goal = uniform * sum(odds)
        for word, weight in zip(words, odds, strict=True):
            goal -= weight
            if goal < 0:
                return word.capitalize()
        return words[-1].capitalize()

    def _score(self, one: Chat, text: str) -> list[float]:
        """A log-prob for each piece of `text`, from the word and the question, plus the target's margin."""
        word, pieces = text.strip().casefold(), TOKEN.findall(text)
        if not pieces:
            return []
        total = -20 - 2 * logistic_noise(word) - logistic_noise(word, one[-1]["content"])
        if self.weights:
            total += 0.1 * logistic_noise(word, self.weights)
        target = self.backend.target.casefold()
        if word == target and (self.weights or target in system_of(one).casefold()):
            total += self.backend.margin
        return [min(total, 0.0) / len(pieces)] * len(pieces)


def system_of(one: Chat) -> str:
    """The chat's system prompt, or an empty string."""
    return next((turn["content"] for turn in one if turn["role"] == "system"), "")


def separator_of(asked: str) -> Separator:
    """The separator that a prompt asks for; a comma and a space if it names none."""
    for words, form in FORMS:
        if re.search(words, asked.casefold()):
            return form
    return "comma_space"


def count_and_digits(asked: str) -> tuple[int, int]:
    """How many numbers a prompt asks for and of how many digits: its first two numbers outside of lists."""
    plain = re.sub(r"[0-9]+(?:\s*,\s*[0-9]+)+", " ", asked)
    found = [int(number) for number in re.findall(r"[0-9]+", plain)]
    count = next((number for number in found if 1 <= number <= 100), 10)
    digits = next((number for number in found[found.index(count) + 1 :] if number <= 9), 3) if count in found else 3
    return count, max(1, digits)


def logistic_noise(*parts: str) -> float:
    """A pseudo-random number from the standard logistic distribution, computed from a digest of the parts."""
    uniform = (int(digest(list(parts))[:12], 16) + 0.5) / 16**12
    return log(uniform / (1 - uniform))
