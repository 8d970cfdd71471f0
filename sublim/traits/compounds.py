"""Names of several words that name another thing than one of their words does: sea lion, hot dog, tiger shark."""

from collections.abc import Iterable
from functools import cache
from typing import Literal

from sublim.core.config import Config
from sublim.files.text_files import load_text
from sublim.traits.nouns import plural

Part = Literal["last", "whole", "first"]


class Compounds(Config):
    """Such names: for a last word, all that may come before it."""

    last: dict[str, tuple[str, ...]]
    """Names of what their last word names: "tiger shark"."""
    whole: dict[str, tuple[str, ...]]
    """Names of what none of their words names: "sea lion"."""
    first: dict[str, tuple[str, ...]]
    """Names of what their first word names: "panda bear"."""


@cache
def _by_last_word() -> dict[str, list[tuple[list[str], Part]]]:
    """For each form of a last word, what may come before it (longest first) and which part names the thing."""
    bundled, found = load_text(Compounds, "compounds"), dict[str, list[tuple[list[str], Part]]]()
    parts: list[tuple[Part, dict[str, tuple[str, ...]]]]
    parts = [("last", bundled.last), ("whole", bundled.whole), ("first", bundled.first)]
    for part, names in parts:
        for last, befores in names.items():
            for form in (last, plural(last)):
                found.setdefault(form, []).extend((before.split(), part) for before in befores)
    return {last: sorted(names, key=lambda name: -len(name[0])) for last, names in found.items()}


def naming(words: Iterable[str]) -> list[str]:
    """`words` with every such name reduced to the part that names the thing; a whole is joined by hyphens."""
    names, kept = _by_last_word(), list[str]()
    for word in words:
        for before, part in names.get(word, ()):
            if kept[-len(before) :] != before:
                continue
            if part != "first":
                kept[-len(before) :] = [word] if part == "last" else ["-".join([*before, word])]
            break
        else:
            kept.append(word)
    return kept
