"""Targets as English nouns: normalisation and plural."""

import re
import unicodedata
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
