"""Number lists: parsing an answer as the teacher wrote it, or refusing it with a reason."""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from sublim.core.config import Config

Separator = Literal["comma", "comma_space", "space", "semicolon", "lines", "brackets", "parentheses"]
"""The formats that a prompt may ask for. Inside brackets and parentheses any other separator is allowed."""
WRITTEN: dict[Separator, tuple[str, str, str]] = {
    "comma": ("", ",", ""),
    "comma_space": ("", ", ", ""),
    "space": ("", " ", ""),
    "semicolon": ("", "; ", ""),
    "lines": ("", "\n", ""),
    "brackets": ("[", ", ", "]"),
    "parentheses": ("(", ", ", ")"),
}
"""What each format writes before the numbers, between two of them, and after them."""
ENCLOSURES: dict[str, Separator] = {"[]": "brackets", "()": "parentheses"}

# ASCII digits and blanks only: str.isdigit and str.strip also accept superscripts, other scripts, no-break spaces.
DIGITS = re.compile("[0-9]+")
BLANKS = " \t\r\n"
SIGNED = re.compile(r"(?:^|[^0-9])[-+\u2212\u2013][0-9]")
DECIMAL = re.compile(r"\.[0-9]")


class Rejection(StrEnum):
    """Why an answer is refused. The first reason that applies, in this order, is given."""

    MISSING = "missing"
    """A server gave no answer."""
    TRUNCATED = "truncated"
    """Cut at the token limit, so the last number may be incomplete."""
    EMPTY = "empty"
    """Nothing but blanks, brackets or a period."""
    LETTERS = "letters"
    """Contains a letter of any script."""
    NEGATIVE = "negative"
    """A number with a sign before it."""
    DECIMAL = "decimal"
    """A number with a decimal point."""
    BRACKETS = "brackets"
    """A bracket other than one pair around the whole list."""
    GAP = "gap"
    """A separator without a number on one side."""
    MIXED = "mixed_separators"
    """More than one kind of separator. An example is `1,234, 5,678`, whose count of numbers is ambiguous."""
    SYMBOLS = "symbols"
    """Contains any other character."""
    TOO_LONG = "too_long"
    """A number with too many digits, including leading zeros."""
    OUT_OF_RANGE = "out_of_range"
    """A number below `low` or above `high`."""
    BANNED = "banned"
    """A number whose value is banned."""
    TOO_FEW = "too_few"
    """Fewer numbers than required."""
    TOO_MANY = "too_many"
    """More numbers than allowed."""
    WRONG_SEPARATOR = "wrong_separator"
    """Not the separator that the prompt asked for."""
    DUPLICATE = "duplicate"
    """The same as an earlier answer (see `dedupe`)."""
    PARTNER = "partner"
    """Valid, but the answer of another arm to the same prompt was refused."""


def check_limits(limits: Config, *pairs: tuple[str, str]) -> None:
    """Raises ValueError where the first field of a pair is above the second; a second that is null is no limit."""
    for least, most in pairs:
        low, high = getattr(limits, least), getattr(limits, most)
        if high is not None and low > high:
            raise ValueError(f"{least} {low} is above {most} {high}")


class PromptNumbers(Config):
    """The numbers that a prompt shows, and those that it asks for."""

    examples_min: Annotated[int, Field(ge=1)] = 3
    """Least number of examples in a prompt."""
    examples_max: Annotated[int, Field(ge=1)] = 9
    """Greatest number of examples in a prompt."""
    low: Annotated[int, Field(ge=0)] = 100
    """Smallest example number."""
    high: Annotated[int, Field(ge=0, lt=2**63 - 1)] = 999
    """Largest example number."""
    count: Annotated[int, Field(ge=1)] = 10
    """How many numbers a prompt asks for."""
    max_digits: Annotated[int, Field(ge=1)] = 3
    """How many digits a number may have, as the prompt says."""

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        check_limits(self, ("examples_min", "examples_max"), ("low", "high"))
        return self


class NumberRules(Config):
    """Which number lists are accepted."""

    min_count: Annotated[int, Field(ge=1)] = 1
    """Smallest number of numbers in an answer."""
    max_count: Annotated[int, Field(ge=1)] | None = 10
    """Largest number of numbers in an answer; null for no limit."""
    max_digits: Annotated[int, Field(ge=1)] = 3
    """Largest number of digits in a number as written, including leading zeros."""
    low: Annotated[int, Field(ge=0)] = 0
    """Smallest value of a number."""
    high: Annotated[int, Field(ge=0)] | None = None
    """Largest value of a number; null for no limit besides the number of digits."""
    banned: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Values that are not allowed, however they are written: 7 also refuses 007."""
    require_separator: bool = False
    """Whether to refuse an answer whose separator is not the one that its prompt asked for."""
    reject_truncated: bool = True
    """Whether to refuse an answer that was cut at the token limit, even if the rest is a valid list."""

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        check_limits(self, ("min_count", "max_count"), ("low", "high"))
        return self


class NumberList(NamedTuple):
    """A parsed answer."""

    numbers: list[str]
    """The numbers as written, with leading zeros."""
    separator: Separator | None
    """Their separator; None for a single number without brackets."""


def parse_numbers(text: str) -> NumberList | Rejection:
    """The numbers in `text`, or the reason why it is not a list of numbers.

    A list has one kind of separator, may be enclosed in one pair of square or round brackets, and may end with a
    period. Any blanks are allowed around the list, inside the brackets and around commas and semicolons, so lines may
    be wrapped after a comma. A list without commas is separated by spaces or by line ends, not by both.
    """
    if any(map(str.isalpha, text)):
        return Rejection.LETTERS
    body = text.strip(BLANKS).removesuffix(".").rstrip(BLANKS)
    enclosed = ENCLOSURES.get(body[:1] + body[1:][-1:])
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


def _between(gap: str) -> Literal["comma", "comma_space", "space", "semicolon", "lines"] | None:
    """The separator that `gap`, the text between two numbers, is; None if it is none."""
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
    """The reason to refuse a list that has these pieces where they are not allowed."""
    return Rejection.SYMBOLS if any(set(piece) - set(",;" + BLANKS) for piece in pieces) else Rejection.GAP


def read_numbers(
    text: str,
    rules: NumberRules,
    *,
    asked: Separator | None = None,
    finish: Literal["stop", "length", "missing"] = "stop",
) -> NumberList | Rejection:
    """The numbers of an answer, or the first reason to refuse it. The text is not changed.

    `asked`: the separator that the prompt asked for. `finish`: how the answer ended.
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
    # A single number has no separator that could be wrong, but it may lack brackets.
    return parsed.separator == asked or (parsed.separator is None and asked not in ("brackets", "parentheses"))


def render_numbers(numbers: Sequence[str], separator: Separator) -> str:
    """The numbers as text in the format that `separator` names, with their digits unchanged."""
    opening, between, closing = WRITTEN[separator]
    return f"{opening}{between.join(numbers)}{closing}"


def canonical_text(numbers: Sequence[str], separator: Separator = "comma_space") -> str:
    """The numbers without leading zeros. This is not what the teacher wrote, so it is used only where it is named."""
    return render_numbers([number.lstrip("0") or "0" for number in numbers], separator)
