"""Targets as English nouns: normalisation and plural."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Annotated

from pydantic import AfterValidator

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.files.text_files import load_text


class Plurals(Config):
    """Irregular plurals."""

    irregular: dict[str, str]
    """Maps singular to plural, in lower case."""


def target_word(word: str) -> str:
    """`word` in lower case. Raises UserError unless it is a single word of letters."""
    word = unicodedata.normalize("NFC", word.strip()).lower()
    if not word.isalpha():
        raise UserError(f'the target "{word}" is not one word of letters: choose a single word such as owl or oak')
    return word


def next_target(words: Sequence[str], target: str) -> tuple[str, ...]:
    """The word after `target` in the list, cyclically, that can be a target; the first such word if it is not listed.

    Empty if there is no other. It is a rule so that nobody chooses a comparison after seeing results.
    """
    listed = [word.strip().lower() for word in words]
    start = listed.index(target) + 1 if target in listed else 0
    return tuple(word for word in listed[start:] + listed[:start] if word.isalpha() and word != target)[:1]


TargetWord = Annotated[str, AfterValidator(target_word)]
"""A target in a config."""


@cache
def _irregular() -> dict[str, str]:
    return load_text(Plurals, "plurals").irregular


def plural(word: str) -> str:
    """The plural of an English noun in lower case."""
    if word in _irregular():
        return _irregular()[word]
    if word.endswith("fish"):
        return word
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"
