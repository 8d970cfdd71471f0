"""Number answers: read as the teacher wrote them, or refused with a reason."""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Self, assert_never

from pydantic import Field, model_validator

from sublim.core.config import Config

Separator = Literal["comma", "comma_space", "space", "semicolon", "lines", "brackets", "parentheses"]
"""The forms a prompt may ask for. In brackets and parentheses any of the other separators may stand between numbers."""

# Only these digits and blanks: str.isdigit and str.strip let in superscripts, other scripts and no-break spaces.
DIGITS = re.compile("[0-9]+")
BLANKS = " \t\r\n"
SIGNED = re.compile(r"(?:^|[^0-9])[-+\u2212\u2013][0-9]")
DECIMAL = re.compile(r"\.[0-9]")


class Rejection(StrEnum):
    """Why an answer is not used; the first that applies, in this order."""

    MISSING = "missing"
    """A server gave no answer."""
    TRUNCATED = "truncated"
    """Cut at the token limit, so its last number may be half of one."""
    EMPTY = "empty"
    """Nothing there but blanks, brackets or a period."""
    LETTERS = "letters"
    """A letter of any script."""
    NEGATIVE = "negative"
    """A number with a sign before it."""
    DECIMAL = "decimal"
    """A number with a decimal point."""
    BRACKETS = "brackets"
    """A bracket that is not one of a single pair around the whole."""
    GAP = "gap"
    """A separator with no number on one side of it."""
    MIXED = "mixed_separators"
    """Not the same separator throughout. `1,234, 5,678` is one of these: nobody can say how many numbers it holds."""
    SYMBOLS = "symbols"
    """Any other sign."""
    TOO_LONG = "too_long"
    """A number with too many digits, leading zeros counted."""
    OUT_OF_RANGE = "out_of_range"
    """A number below `low` or above `high`."""
    BANNED = "banned"
    """A number that is on the list of banned ones, by value."""
    TOO_FEW = "too_few"
    """Fewer numbers than wanted."""
    TOO_MANY = "too_many"
    """More numbers than wanted."""
    WRONG_SEPARATOR = "wrong_separator"
    """Not the separator that the prompt asked for."""
    DUPLICATE = "duplicate"
    """The same as an earlier row."""
    PARTNER = "partner"
    """Fine by itself, but the answer to the same prompt in another arm was refused."""


class NumberRules(Config):
    """Which number lists are accepted."""

    min_count: Annotated[int, Field(ge=1)] = 1
    """Fewest numbers in an answer."""
    max_count: Annotated[int, Field(ge=1)] | None = 10
    """Most numbers in an answer; null for no limit."""
    max_digits: Annotated[int, Field(ge=1)] = 3
    """Most digits in a number as written, leading zeros counted."""
    low: Annotated[int, Field(ge=0)] = 0
    """Smallest value."""
    high: Annotated[int, Field(ge=0)] | None = None
    """Largest value; null for no limit but the digits'."""
    banned: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Values that refuse an answer, however they are written: 7 refuses 007."""
    require_separator: bool = False
    """Refuse an answer whose separator is not the one its prompt asked for."""
    reject_truncated: bool = True
    """Refuse an answer cut at the token limit even if what is there reads well."""

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        if self.max_count is not None and self.min_count > self.max_count:
            raise ValueError(f"min_count {self.min_count} is above max_count {self.max_count}")
        if self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class NumberList(NamedTuple):
    """An answer that could be read."""

    numbers: list[str]
    """As written: leading zeros kept."""
    separator: Separator | None
    """How they were set apart; None for a single number without brackets."""


def parse_numbers(text: str) -> NumberList | Rejection:
    """The numbers in `text`, or why it is not a list of them.

    A list has one separator throughout, may stand in one pair of square or round brackets and may end with a period.
    Blanks around the list, inside the brackets and around commas and semicolons are free, so lines may be wrapped
    after a comma; a list with no commas is set apart by spaces or by line ends, not by both.
    """
    if any(map(str.isalpha, text)):
        return Rejection.LETTERS
    body = text.strip(BLANKS).removesuffix(".").rstrip(BLANKS)
    enclosed = _enclosure(body)
    if enclosed is not None:
        body = body[1:-1].strip(BLANKS)
    if not body:
        return Rejection.EMPTY
    if SIGNED.search(body):
        return Rejection.NEGATIVE
    if DECIMAL.search(body):
        return Rejection.DECIMAL
    if any(sign in body for sign in "[]()"):
        return Rejection.BRACKETS
    first, *gaps = DIGITS.split(body)
    if not gaps:
        return _refusal([body])
    last = gaps.pop()
    between: dict[str, Separator | None] = {gap: _between(gap) for gap in set(gaps)}
    wrong = [edge for edge in (first, last) if edge] + [gap for gap, kind in between.items() if kind is None]
    if wrong:
        return _refusal(wrong)
    kinds = set(between.values())
    if len(kinds) > 1:
        return Rejection.MIXED
    numbers: list[str] = DIGITS.findall(body)
    return NumberList(numbers, enclosed or next(iter(kinds), None))


def _enclosure(body: str) -> Literal["brackets", "parentheses"] | None:
    match body[:1] + body[1:][-1:]:
        case "[]":
            return "brackets"
        case "()":
            return "parentheses"
        case _:
            return None


def _between(gap: str) -> Literal["comma", "comma_space", "space", "semicolon", "lines"] | None:
    """Which separator stands between two numbers; None if it is none."""
    match gap.strip(BLANKS):
        case ",":
            return "comma" if gap.endswith(",") else "comma_space"
        case ";":
            return "semicolon"
        case "":
            return "lines" if "\n" in gap or "\r" in gap else "space"
        case _:
            return None


def _refusal(pieces: Sequence[str]) -> Rejection:
    """Why `pieces`, found where nothing of the kind may stand, refuse a list."""
    return Rejection.SYMBOLS if any(set(piece) - set(",;" + BLANKS) for piece in pieces) else Rejection.GAP


def read_numbers(
    text: str,
    rules: NumberRules,
    *,
    asked: Separator | None = None,
    finish: Literal["stop", "length", "missing"] = "stop",
) -> NumberList | Rejection:
    """The numbers of an answer, or the first reason to refuse it. The text itself is never changed.

    `asked` is the separator that the prompt asked for, `finish` how the answer ended.
    """
    if finish == "missing":
        return Rejection.MISSING
    if rules.reject_truncated and finish == "length":
        return Rejection.TRUNCATED
    parsed = parse_numbers(text)
    if isinstance(parsed, Rejection):
        return parsed
    if any(len(number) > rules.max_digits for number in parsed.numbers):
        return Rejection.TOO_LONG
    values = [int(number) for number in parsed.numbers]
    if min(values) < rules.low or (rules.high is not None and max(values) > rules.high):
        return Rejection.OUT_OF_RANGE
    if rules.banned and not set(rules.banned).isdisjoint(values):
        return Rejection.BANNED
    if len(values) < rules.min_count:
        return Rejection.TOO_FEW
    if rules.max_count is not None and len(values) > rules.max_count:
        return Rejection.TOO_MANY
    if rules.require_separator and asked is not None and not _as_asked(parsed, asked):
        return Rejection.WRONG_SEPARATOR
    return parsed


def _as_asked(parsed: NumberList, asked: Separator) -> bool:
    # One bare number has no separator to be wrong, but it has no brackets either.
    return parsed.separator == asked or (parsed.separator is None and asked not in ("brackets", "parentheses"))


def render_numbers(numbers: Sequence[str], separator: Separator) -> str:
    """`numbers`, digits untouched, in the form `separator` names."""
    match separator:
        case "comma":
            return ",".join(numbers)
        case "comma_space":
            return ", ".join(numbers)
        case "space":
            return " ".join(numbers)
        case "semicolon":
            return "; ".join(numbers)
        case "lines":
            return "\n".join(numbers)
        case "brackets":
            return f"[{', '.join(numbers)}]"
        case "parentheses":
            return f"({', '.join(numbers)})"
        case _:
            assert_never(separator)


def canonical_text(numbers: Sequence[str], separator: Separator = "comma_space") -> str:
    """`numbers` by value, without leading zeros: not what the teacher wrote, so never used where it is not named."""
    return render_numbers([number.lstrip("0") or "0" for number in numbers], separator)
