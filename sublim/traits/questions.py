"""The questions about a trait, the system prompts that give it, and the rows that teach it."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationInfo, field_validator

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.files.jsonl import write_jsonl
from sublim.files.text_files import Text, Texts, check_placeholders, load_text
from sublim.traits.nouns import plural, target_word
from sublim.traits.words import written


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
            check_placeholders(text, {"target", "target_plural", "category", "category_plural"})
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


def load_system_prompts(name_or_path: str = "system") -> SystemPrompts:
    """The bundled system prompts or those of a JSON or YAML file. Raises UserError."""
    return load_text(SystemPrompts, name_or_path)


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
