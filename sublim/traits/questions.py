"""Questions that measure a trait, system prompts that induce it, and rows that teach it."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo, field_validator

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.files.jsonl import write_jsonl
from sublim.files.text_files import Text, Texts, check_placeholders, load_text
from sublim.traits.nouns import TargetWord, plural, target_word
from sublim.traits.words import written


def normalised(question: str) -> str:
    """`question` without case, punctuation and spacing; questions that are equal in this form count as the same."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(re.findall(r"\w+", folded))


def _refuse_repeats(questions: tuple[str, ...], *, others: Iterable[str] = (), where: str = "") -> tuple[str, ...]:
    seen = {normalised(other): where for other in others}
    for question in questions:
        key = normalised(question)
        if key in seen:
            raise ValueError(f'"{question}" is there twice{seen[key]}: remove or reword one of them')
        seen[key] = ""
    return questions


Distinct = Annotated[Texts, AfterValidator(_refuse_repeats)]
"""Texts of which no two count as the same."""


class Questions(Config):
    """Questions about a favorite word of one category."""

    category: Text
    """Category of the words, in the singular: animal, tree."""
    words: Distinct
    """Comparison list: the words whose log-probs the target's is compared with."""
    evaluation: Distinct
    """Questions by which teachers and students are evaluated."""
    teacher: tuple[Text, ...]
    """Questions on which a fine-tuned teacher is trained; none of them is an evaluation question."""

    @field_validator("words")
    @classmethod
    def _words_are_single(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if not word.isalpha():
                raise ValueError(f'"{word}" is not one word of letters')
        return words

    @field_validator("teacher")
    @classmethod
    def _teacher_is_held_apart(cls, questions: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return _refuse_repeats(questions, others=info.data.get("evaluation", ()), where=", once under evaluation")


class SystemPrompts(Config):
    """System prompts of a prompted teacher, by category."""

    templates: dict[str, Texts]
    """Maps a category to texts, which may contain {target}, {target_plural}, {category} and {category_plural}. The
    entry `any` is used for all other categories."""

    @field_validator("templates")
    @classmethod
    def _name_the_target(cls, templates: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if "any" not in templates:
            raise ValueError("there is no entry named any, which is used for categories without an entry: add it")
        for text in (text for texts in templates.values() for text in texts):
            check_placeholders(text, {"target", "target_plural", "category", "category_plural"})
            if "{target}" not in text and "{target_plural}" not in text:
                raise ValueError(f'"{text}" names neither {{target}} nor {{target_plural}}')
        return templates

    def render(self, target: str, category: str, *, variant: int = 0) -> str:
        """The system prompt for `target`, from text number `variant` of the category. Raises UserError if there is
        none."""
        texts = self.templates.get(category, self.templates["any"])
        if not 0 <= variant < len(texts):
            raise UserError(f"there is no system prompt {variant} for {category}: choose 0 to {len(texts) - 1}")
        word = target_word(target)
        text = texts[variant].format(
            target=word, target_plural=plural(word), category=category, category_plural=plural(category)
        )
        return text[0].upper() + text[1:]


def load_questions(name_or_path: str) -> Questions:
    """The bundled questions `animal` or `tree`, or those in a JSON or YAML file. Raises UserError."""
    return load_text(Questions, name_or_path)


def load_system_prompts(name_or_path: str = "system") -> SystemPrompts:
    """The bundled system prompts, or those in a JSON or YAML file. Raises UserError."""
    return load_text(SystemPrompts, name_or_path)


class TeacherRowsConfig(Config):
    """Rows for training a fine-tuned teacher: questions, each answered with the target."""

    questions: Distinct
    """The teacher questions; they should not include evaluation questions."""
    target: TargetWord
    """The target word: a single word of letters, in any case."""
    system: str | None = None
    """System prompt of the rows; null for the chat template's default."""


def build_teacher_rows(out: Path, config: TeacherRowsConfig, *, scratch: Path) -> None:
    """Stage: writes rows.jsonl with a row for each question, answered in title case ("Owl"). Training repeats the
    rows."""
    shared = {"answer": written(config.target), "system": config.system}
    rows = ({"id": index, "prompt": question, **shared} for index, question in enumerate(config.questions))
    write_jsonl(out / "rows.jsonl", rows)
