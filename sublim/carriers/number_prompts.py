"""Number prompts, drawn at random from templates."""

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import Field, field_validator, model_validator

from sublim.carriers.numbers import Separator
from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.files.text_files import Text, Texts, check_placeholders, load_text

T = TypeVar("T")


class FormatText(Config):
    """An instruction on the format of the answer, with the separator it asks for."""

    separator: Separator
    """The separator that `text` asks for."""
    text: Text
    """The instruction."""


class NumberTemplates(Config):
    """The four parts of a number prompt. A prompt has one text of each, joined by spaces."""

    opening: Texts
    """Shows example numbers; must contain {examples}."""
    request: Texts
    """Asks for more numbers; must contain {count} and {digits}."""
    format: Annotated[tuple[FormatText, ...], Field(min_length=1)]
    """Says how to separate the numbers."""
    closing: Texts
    """Asks for nothing but numbers."""

    @field_validator("opening")
    @classmethod
    def _opening_shows_examples(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_placeholders(text, {"examples"}, needed={"examples"}) for text in texts)

    @field_validator("request")
    @classmethod
    def _request_says_how_many(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_placeholders(text, {"count", "digits"}, needed={"count", "digits"}) for text in texts)

    @field_validator("closing")
    @classmethod
    def _closing_is_plain(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_placeholders(text, set()) for text in texts)

    @field_validator("format")
    @classmethod
    def _format_is_plain(cls, formats: tuple[FormatText, ...]) -> tuple[FormatText, ...]:
        for each in formats:
            check_placeholders(each.text, set())
        return formats

    def asking_for(self, separator: Separator) -> Self:
        """These templates with only the formats that ask for `separator`. Raises UserError if there is none."""
        kept = tuple(each for each in self.format if each.separator == separator)
        if not kept:
            raise UserError(f"none of these number templates asks for the separator {separator}: add one under format")
        return self.model_copy(update={"format": kept})


def load_number_templates(name_or_path: str) -> NumberTemplates:
    """The bundled templates `numbers` or `numbers_short`, or those in a JSON or YAML file. Raises UserError."""
    return load_text(NumberTemplates, name_or_path)


class NumberPrompt(NamedTuple):
    """A number prompt and the separator that it asks for."""

    text: str
    separator: Separator


class NumberPrompts(Config):
    """How number prompts are drawn."""

    templates: NumberTemplates
    """Templates of the parts of a prompt."""
    examples_min: Annotated[int, Field(ge=1)] = 3
    """Smallest number of example numbers."""
    examples_max: Annotated[int, Field(ge=1)] = 9
    """Largest number of example numbers."""
    low: Annotated[int, Field(ge=0)] = 100
    """Smallest value of an example number."""
    high: Annotated[int, Field(ge=0, lt=2**63 - 1)] = 999
    """Largest value of an example number."""
    count: Annotated[int, Field(ge=1)] = 10
    """How many numbers the prompt asks for."""
    max_digits: Annotated[int, Field(ge=1)] = 3
    """How many digits, at most, the prompt asks for."""

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        if self.examples_min > self.examples_max:
            raise ValueError(f"examples_min {self.examples_min} is above examples_max {self.examples_max}")
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def draw_prompt(prompts: NumberPrompts, seed: int, index: int) -> NumberPrompt:
    """Prompt `index` of the series `seed`. It depends on nothing else, not even on other draws."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))

    def one(texts: Sequence[T]) -> T:
        return texts[int(rng.integers(len(texts)))]

    n_shown = int(rng.integers(prompts.examples_min, prompts.examples_max, endpoint=True))
    shown = rng.integers(prompts.low, prompts.high, size=n_shown, endpoint=True)
    templates = prompts.templates
    opening = one(templates.opening).format(examples=", ".join(map(str, shown)))
    request = one(templates.request).format(count=prompts.count, digits=prompts.max_digits)
    form = one(templates.format)
    # format() without arguments turns doubled braces into single ones, as in the other parts.
    parts = (opening, request, form.text.format(), one(templates.closing).format())
    return NumberPrompt(" ".join(parts), form.separator)


def draw_prompts(prompts: NumberPrompts, seed: int, n: int) -> Iterator[NumberPrompt]:
    """Prompts 0 to n - 1 of the series `seed`."""
    return (draw_prompt(prompts, seed, index) for index in range(n))
