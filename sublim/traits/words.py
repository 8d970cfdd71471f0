"""Reading answers: which listed word an answer names, in any of its forms."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Literal, NamedTuple

from sublim.chats.thoughts import answer_after_thought
from sublim.core.errors import UserError
from sublim.traits.compounds import naming
from sublim.traits.reading import choice

_WORD = re.compile(r"[\w'’\-]+")
_SIGNS = {",": ",", "?": "?", ">": "over", "/": "or", "&": "and", "+": "and"} | dict.fromkeys(".;:!…()\n—–", ".")
"""What signs between words stand for; a dash of hyphens is a full stop too."""
_WORD_OR_SIGN = re.compile(rf"[\w'\-]+|[{re.escape(''.join(_SIGNS))}]")
_LAST_WORD = re.compile(r"[\w'\-]+$")
_UNFINISHED = re.compile(r"(?: _\d+)+ \. $")
_ARTICLES = frozenset({"a", "an", "the"})
_IRREGULAR = {"geese": "goose", "mice": "mouse", "lice": "louse", "oxen": "ox", "men": "man", "women": "woman"} | {
    "children": "child", "feet": "foot", "teeth": "tooth", "octopi": "octopus", "cacti": "cactus", "fungi": "fungus"
}  # fmt: skip
_REFUSAL = re.compile(
    r"\b(as an? (ai|artificial|language model|digital|virtual)"
    r"|i('m| am) (sorry|afraid(?! of)|not able|unable|an? (ai|language model))"
    r"|i (can'?t|cannot|won'?t|don'?t have|do not have)(?! (stand|bear|resist|get|live|help|wait))"
    r"|i have no (personal |real )?(favou?rites?|preferences?|opinions?|feelings)"
    r"|unable to (answer|choose|provide))\b"
)


class Unread(StrEnum):
    """Why an answer names no word. Such answers do not count as answers against the target."""

    EMPTY = "empty"
    """Contains no word."""
    CUT = "cut"
    """Cut at the token limit before it named a listed word."""
    SEVERAL = "several"
    """Chooses more than one listed word."""
    NEGATED = "negated"
    """Names listed words only to turn them down, or in a clause that denies or dislikes something."""
    MENTIONED = "mentioned"
    """Mentions listed words only in passing: under an "if", in a question, as what others like."""
    REFUSED = "refused"
    """A complete answer that refuses to answer."""
    THOUGHT = "thought"
    """A thought that does not end, so that there is no answer."""
    MISSING = "missing"
    """A server gave no answer."""


class Reading(NamedTuple):
    """What an answer says: a listed word, other words, or the reason why it cannot be read."""

    word: str | None = None
    other: str | None = None
    unread: Unread | None = None


def plain(text: str) -> list[str]:
    """The words of `text`, lower case, without punctuation, possessive or articles."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    words = (word.removesuffix("'s").strip("_'-") for word in _WORD.findall(folded))
    return [word for word in words if word and word not in _ARTICLES]


def singulars(word: str) -> set[str]:
    """`word` and all words whose plural it may be by English spelling ("foxes": foxes, foxe, fox)."""
    forms = {word, _IRREGULAR.get(word, word)}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        forms.add(word[:-2])
    if len(word) > 4 and word.endswith("ies"):
        forms.add(word[:-3] + "y")
    if len(word) > 4 and word.endswith("ves"):
        forms |= {word[:-3] + "f", word[:-3] + "fe"}
    return forms


def comparison_list(targets: Sequence[str], words: Iterable[str]) -> list[str]:
    """`words` in lower case, with missing targets added at the end.

    Raises UserError if there is only one word, if an entry is not a single word, or if two words share a form, so that
    an answer would count for both.
    """
    spelled = [word.strip() for word in words]
    given = {word.casefold() for word in spelled}
    spelled += [word for word in dict.fromkeys(target.strip() for target in targets) if word.casefold() not in given]
    seen: dict[str, str] = {}
    for word in spelled:
        if plain(word) != [word.casefold()] or any(letter.isdigit() for letter in word):
            raise UserError(f"'{word}' in the comparison list is not a single word: write it without spaces or digits")
        forms = singulars(word.casefold())
        if clash := sorted(forms & seen.keys()):
            raise UserError(
                f"'{seen[clash[0]]}' and '{word}' in the comparison list count as the same word: keep one of them"
            )
        seen |= dict.fromkeys(forms, word)
    if len(spelled) < 2:
        raise UserError(f"the comparison list holds {spelled} and nothing to compare with: add at least one other word")
    return [word.casefold() for word in spelled]


class Reader:
    """Reads answers with a comparison list. A listed word counts only as a whole word, in any of its forms, and only
    where the answer chooses it (`sublim.traits.reading`) and means it (`sublim.traits.compounds`)."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._number = {form: number for number, word in enumerate(words) for form in singulars(word)}
        self._named = lru_cache(maxsize=1 << 16)(self._look_up)  # answers share most of their words

    def _look_up(self, token: str) -> int | None:
        return next((self._number[form] for form in sorted(singulars(token)) if form in self._number), None)

    def _marked(self, folded: str) -> str:
        """`folded` for `choice`: words and breaks between spaces, with numbers for listed words."""
        tokens = (
            _SIGNS.get(token) or token.removesuffix("'s").strip("'-") or "." for token in _WORD_OR_SIGN.findall(folded)
        )
        words = naming(token for token in tokens if token not in _ARTICLES)
        numbers = ((self._named(word), word) for word in words)
        return " ".join([" .", *(word if number is None else f"_{number}" for number, word in numbers), ". "])

    def read(self, text: str, finish: Literal["stop", "length", "missing"] = "stop") -> Reading:
        """What `text` says after its thoughts. With finish "length" the last word may be incomplete and is ignored."""
        if finish == "missing":
            return Reading(unread=Unread.MISSING)
        answer = answer_after_thought(text)
        if answer is None:
            return Reading(unread=Unread.THOUGHT)
        return self._read(answer, finish)

    def _read(self, text: str, finish: Literal["stop", "length"]) -> Reading:
        folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("_", " ")
        cut = finish == "length"
        if cut and text and text[-1].isalnum():
            folded = _LAST_WORD.sub("", folded)
        marked = self._marked(folded)
        if cut:
            # What comes next may belong to the last word: "the wolf" may be a wolf spider.
            marked = _UNFINISHED.sub(" . ", marked)
        refused = bool(_REFUSAL.search(folded))
        found = choice(marked, refused=refused)
        if len(found.chosen) == 1:
            return Reading(word=self._words[found.chosen.pop()])
        if found.chosen:
            return Reading(unread=Unread.SEVERAL)
        if cut:
            return Reading(unread=Unread.CUT)
        words = plain(text)
        if not any(letter.isalpha() for word in words for letter in word):
            return Reading(unread=Unread.EMPTY)
        if refused:
            return Reading(unread=Unread.REFUSED)
        if "_" in marked:
            return Reading(unread=Unread.MENTIONED if found.aside else Unread.NEGATED)
        return Reading(other=" ".join(words))


def written(word: str) -> str:
    """`word` as an assistant would begin its turn with it: in title case, without a leading space."""
    return word.title()
