"""Number prompts, drawn at random from templates."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from sublim.carriers.numbers import PromptNumbers, Separator
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


PLACEHOLDERS: dict[str, set[str]] = {
    "opening": {"examples"},
    "request": {"count", "digits"},
    "format": set(),
    "closing": set(),
}
"""The placeholders of each part of a prompt: all must be there, and no others."""


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

    @field_validator(*PLACEHOLDERS)
    @classmethod
    def _has_its_placeholders(cls, parts: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        wanted = PLACEHOLDERS[info.field_name or ""]
        for part in parts:
            check_placeholders(part.text if isinstance(part, FormatText) else part, wanted, needed=wanted)
        return parts

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


class NumberPrompts(PromptNumbers):
    """How number prompts are drawn."""

    templates: NumberTemplates
    """Templates of the parts of a prompt."""


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
