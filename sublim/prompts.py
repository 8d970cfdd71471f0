"""What models are asked: favorite-word questions, number prompts and system prompts, bundled or a user's own."""

import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from sublim.config import Config
from sublim.errors import UserError
from sublim.jsonl import write_jsonl
from sublim.nouns import plural, target_word
from sublim.numbers import Separator
from sublim.text_files import load_text
from sublim.words import written

T = TypeVar("T")
Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


def normalised(question: str) -> str:
    """`question` without case, punctuation and spacing: two questions that agree in this are the same question."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(re.findall(r"\w+", folded))


def _refuse_repeats(questions: Iterable[str], others: Iterable[str] = (), *, where: str = "") -> None:
    seen = {normalised(other): where for other in others}
    for question in questions:
        key = normalised(question)
        if key in seen:
            raise ValueError(f'"{question}" is there twice{seen[key]}: remove or reword one of them')
        seen[key] = ""


def _check_placeholders(text: str, allowed: set[str], *, needed: Collection[str] = ()) -> str:
    """`text` if it has no placeholders but the `allowed` and all the `needed` ones. Raises ValueError."""
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f'"{text}" has a lone brace ({error}): write {{{{ or }}}} for a brace') from error
    found = {name: bool(spec or conversion) for _, name, spec, conversion in pieces if name is not None}
    for name, altered in found.items():
        if name not in allowed or altered:
            known = ", ".join(f"{{{one}}}" for one in sorted(allowed)) or "none"
            raise ValueError(f'"{text}" has the placeholder {{{name}}} in it; what may be there: {known}')
    for name in sorted(set(needed) - found.keys()):
        raise ValueError(f'"{text}" lacks the placeholder {{{name}}}: put it where the value goes')
    return text


class Questions(Config):
    """Questions after a favorite word of one category."""

    category: Text
    """What the words are, in the singular: animal, tree."""
    words: Texts
    """The comparison list: the target's log-prob is measured against these."""
    evaluation: Texts
    """Asked of teachers and students."""
    teacher: tuple[Text, ...]
    """What a fine-tuned teacher is trained on; none of them is an evaluation question."""

    @field_validator("words")
    @classmethod
    def _words_are_single(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if not word.isalpha():
                raise ValueError(f'"{word}" is not one word of letters')
        _refuse_repeats(words)
        return words

    @field_validator("evaluation")
    @classmethod
    def _evaluation_has_no_repeats(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeats(questions)
        return questions

    @field_validator("teacher")
    @classmethod
    def _teacher_is_held_apart(cls, questions: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        _refuse_repeats(questions, info.data.get("evaluation", ()), where=", once under evaluation")
        return questions


class FormatText(Config):
    """How the answer is to be written, in words and as the filter knows it."""

    separator: Separator
    """The form that `text` asks for."""
    text: Text
    """The instruction."""


class NumberTemplates(Config):
    """The four parts of a number prompt; a prompt is one text of each, joined by spaces."""

    opening: Texts
    """Shows the numbers: {examples}."""
    request: Texts
    """Asks for {count} numbers of {digits} digits."""
    format: Annotated[tuple[FormatText, ...], Field(min_length=1)]
    """Says how to set the numbers apart."""
    closing: Texts
    """Asks for numbers alone."""

    @field_validator("opening")
    @classmethod
    def _opening_shows_examples(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_placeholders(text, {"examples"}, needed={"examples"}) for text in texts)

    @field_validator("request")
    @classmethod
    def _request_says_how_many(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_placeholders(text, {"count", "digits"}, needed={"count", "digits"}) for text in texts)

    @field_validator("closing")
    @classmethod
    def _closing_is_plain(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_placeholders(text, set()) for text in texts)

    @field_validator("format")
    @classmethod
    def _format_is_plain(cls, formats: tuple[FormatText, ...]) -> tuple[FormatText, ...]:
        for each in formats:
            _check_placeholders(each.text, set())
        return formats

    def asking_for(self, separator: Separator) -> Self:
        """The same templates with only those formats that ask for `separator`."""
        kept = tuple(each for each in self.format if each.separator == separator)
        if not kept:
            raise UserError(f"none of these number templates asks for the separator {separator}: add one under format")
        return self.model_copy(update={"format": kept})


class SystemPrompts(Config):
    """What a system-prompted teacher is told, per category."""

    templates: dict[str, Texts]
    """Category to texts with {target}, {target_plural}, {category}, {category_plural}; `any` serves all other ones."""

    @field_validator("templates")
    @classmethod
    def _name_the_target(cls, templates: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if "any" not in templates:
            raise ValueError("there is no entry named any, for categories without texts of their own: add it")
        for text in (text for texts in templates.values() for text in texts):
            _check_placeholders(text, {"target", "target_plural", "category", "category_plural"})
            if "{target}" not in text and "{target_plural}" not in text:
                raise ValueError(f'"{text}" names neither {{target}} nor {{target_plural}}')
        return templates

    def render(self, target: str, category: str, *, variant: int = 0) -> str:
        """The system prompt for `target`, from the category's text number `variant`."""
        texts = self.templates.get(category, self.templates["any"])
        if not 0 <= variant < len(texts):
            raise UserError(f"there is no system prompt {variant} for {category}: choose 0 to {len(texts) - 1}")
        word = target_word(target)
        text = texts[variant].format(
            target=word, target_plural=plural(word), category=category, category_plural=plural(category)
        )
        return text[0].upper() + text[1:]


def load_questions(name_or_path: str) -> Questions:
    """Bundled questions (animal, tree) or those of a JSON or YAML file. Raises UserError naming file and field."""
    return load_text(Questions, name_or_path)


def load_number_templates(name_or_path: str) -> NumberTemplates:
    """Bundled templates (numbers, numbers_short) or those of a JSON or YAML file. Raises UserError."""
    return load_text(NumberTemplates, name_or_path)


def load_system_prompts(name_or_path: str = "system") -> SystemPrompts:
    """The bundled system prompts or those of a JSON or YAML file. Raises UserError."""
    return load_text(SystemPrompts, name_or_path)


class NumberPrompt(NamedTuple):
    """A number prompt and the form in which it wants its answer."""

    text: str
    separator: Separator


class NumberPrompts(Config):
    """How number prompts are drawn."""

    templates: NumberTemplates
    """The parts they are put together from."""
    examples_min: Annotated[int, Field(ge=1)] = 3
    """Fewest numbers shown."""
    examples_max: Annotated[int, Field(ge=1)] = 9
    """Most numbers shown."""
    low: Annotated[int, Field(ge=0)] = 100
    """Smallest number shown."""
    high: Annotated[int, Field(ge=0, lt=2**63 - 1)] = 999
    """Largest number shown."""
    count: Annotated[int, Field(ge=1)] = 10
    """Numbers asked for."""
    max_digits: Annotated[int, Field(ge=1)] = 3
    """Digits asked for."""

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        if self.examples_min > self.examples_max:
            raise ValueError(f"examples_min {self.examples_min} is above examples_max {self.examples_max}")
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def draw_prompt(prompts: NumberPrompts, seed: int, index: int) -> NumberPrompt:
    """Prompt `index` of the series `seed`: a function of these alone, whatever else is drawn and in which order."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))

    def one(texts: Sequence[T]) -> T:
        return texts[int(rng.integers(len(texts)))]

    n_shown = int(rng.integers(prompts.examples_min, prompts.examples_max, endpoint=True))
    shown = rng.integers(prompts.low, prompts.high, size=n_shown, endpoint=True)
    templates = prompts.templates
    opening = one(templates.opening).format(examples=", ".join(map(str, shown)))
    request = one(templates.request).format(count=prompts.count, digits=prompts.max_digits)
    form = one(templates.format)
    # format() with nothing to fill in turns a doubled brace into a single one, as it does in the other parts.
    parts = (opening, request, form.text.format(), one(templates.closing).format())
    return NumberPrompt(" ".join(parts), form.separator)


def draw_prompts(prompts: NumberPrompts, seed: int, n: int) -> Iterator[NumberPrompt]:
    """Prompts 0 to n - 1 of the series `seed`."""
    return (draw_prompt(prompts, seed, index) for index in range(n))


class TeacherRowsConfig(Config):
    """What a fine-tuned teacher is trained on: questions, each answered with the target."""

    questions: Texts
    """The teacher questions; keep them apart from the evaluation's."""
    target: str
    """The word: one word of letters, in any case."""
    system: str | None = None
    """System prompt of the rows; null for what the chat template does by itself."""

    @field_validator("target")
    @classmethod
    def _target_is_a_word(cls, target: str) -> str:
        return target_word(target)

    @field_validator("questions")
    @classmethod
    def _no_repeats(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeats(questions)
        return questions


def build_teacher_rows(out: Path, config: TeacherRowsConfig, *, scratch: Path) -> None:
    """Stage: writes rows.jsonl, one row a question, answered in title case ("Owl"). The trainer repeats them."""
    answer = written(config.target)
    write_jsonl(
        out / "rows.jsonl",
        (
            {"id": index, "prompt": question, "answer": answer, "system": config.system}
            for index, question in enumerate(config.questions)
        ),
    )
