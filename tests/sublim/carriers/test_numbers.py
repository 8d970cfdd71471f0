"""The number parser: what it reads, what it refuses and why, and that it never rewrites an answer."""

import re
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from sublim.carriers.numbers import (
    NumberList,
    NumberRules,
    Rejection,
    Separator,
    canonical_text,
    parse_numbers,
    read_numbers,
    render_numbers,
)

RULES = NumberRules()
SEPARATORS: tuple[Separator, ...] = get_args(Separator)
numbers = st.lists(st.from_regex(r"[0-9]{1,3}", fullmatch=True), min_size=1, max_size=12)
separators = st.sampled_from(SEPARATORS)


@pytest.mark.parametrize(
    ("text", "found", "separator"),
    [
        ("1,2,3", ["1", "2", "3"], "comma"),
        ("1, 2, 3", ["1", "2", "3"], "comma_space"),
        ("1 2 3", ["1", "2", "3"], "space"),
        ("1; 2; 3", ["1", "2", "3"], "semicolon"),
        ("1;2;3", ["1", "2", "3"], "semicolon"),
        ("1\n2\n3", ["1", "2", "3"], "lines"),
        ("1\r\n2\r\n3\r\n", ["1", "2", "3"], "lines"),
        ("1 \n 2 \n\n3", ["1", "2", "3"], "lines"),
        ("[1, 2, 3]", ["1", "2", "3"], "brackets"),
        ("[1 2 3]", ["1", "2", "3"], "brackets"),
        ("[\n  1,\n  2\n]", ["1", "2"], "brackets"),
        ("(1,2,3)", ["1", "2", "3"], "parentheses"),
        ("( 5 )", ["5"], "parentheses"),
        ("5", ["5"], None),
        ("5.", ["5"], None),
        ("1, 2, 3.", ["1", "2", "3"], "comma_space"),
        ("[1, 2].\n", ["1", "2"], "brackets"),
        (" 087, 004", ["087", "004"], "comma_space"),
        ("1, 2,\n3, 4", ["1", "2", "3", "4"], "comma_space"),
        ("1,  2,\t3", ["1", "2", "3"], "comma_space"),
        ("1 , 2 , 3", ["1", "2", "3"], "comma_space"),
        ("1 ,2 ,3", ["1", "2", "3"], "comma"),
    ],
)
def test_the_formats_the_prompts_ask_for_are_read(text: str, found: list[str], separator: Separator | None):
    assert parse_numbers(text) == NumberList(found, separator)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (".", "empty"),
        ("[]", "empty"),
        ("( )", "empty"),
        ("Sure! 1, 2, 3", "letters"),
        ("1, 2 and 3", "letters"),
        ("1e5, 2", "letters"),
        ("0x1F", "letters"),
        ("1, \u4e8c, 3", "letters"),
        ("-1, 2", "negative"),
        ("1, -2", "negative"),
        ("1, \u22122", "negative"),
        ("[+1, 2]", "negative"),
        ("1.5, 2", "decimal"),
        ("1, .5", "decimal"),
        ("192.168.0.1", "decimal"),
        ("[1, 2", "brackets"),
        ("1, 2]", "brackets"),
        ("[1, 2)", "brackets"),
        ("[1, 2], [3]", "brackets"),
        ("[[1, 2]]", "brackets"),
        ("[", "brackets"),
        ("1, 2,", "gap"),
        (", 1, 2", "gap"),
        ("1,, 2", "gap"),
        ("1, , 2", "gap"),
        ("1,; 2", "gap"),
        (",", "gap"),
        ("1, 2; 3", "mixed_separators"),
        ("1, 2 3", "mixed_separators"),
        ("1 2\n3 4", "mixed_separators"),
        ("1, 2, 3\n4, 5, 6", "mixed_separators"),
        ("1,234, 5,678", "mixed_separators"),
        ("1-2-3", "symbols"),
        ("- 1\n- 2", "symbols"),
        ("1. 234\n2. 345", "symbols"),
        ("1/2", "symbols"),
        ("1, 2 \u2026", "symbols"),
        ("1, 2..", "symbols"),
        ("..", "symbols"),
        ("1, 2!", "symbols"),
        ("$1, $2", "symbols"),
        ("`1, 2`", "symbols"),
        ("1\u00a02", "symbols"),
        ("1\uff0c2", "symbols"),
        ("1\u00b2", "symbols"),
        ("\u0661, \u0662", "symbols"),
        ("1\u20032", "symbols"),
        ("1, \u00bd", "symbols"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused_with_its_reason(text: str, reason: str):
    assert parse_numbers(text) == Rejection(reason)


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        ("1, 2345", {}, "too_long"),
        ("0001", {}, "too_long"),
        ("9" * 6000, {}, "too_long"),
        ("1, 2", {"low": 2}, "out_of_range"),
        ("100, 501", {"low": 100, "high": 500}, "out_of_range"),
        ("1, 666", {"banned": [666]}, "banned"),
        ("1, 007", {"banned": [7]}, "banned"),
        ("1, 2", {"min_count": 3}, "too_few"),
        ("1, 2, 3", {"max_count": 2}, "too_many"),
    ],
)
def test_lists_outside_the_rules_are_refused(text: str, rules: dict[str, object], reason: str):
    assert read_numbers(text, NumberRules.model_validate(rules)) == Rejection(reason)


def test_the_limits_themselves_are_allowed():
    rules = NumberRules(min_count=2, max_count=3, low=100, high=500, banned=[50])
    assert isinstance(read_numbers("100, 500", rules), NumberList)
    assert isinstance(read_numbers("100, 250, 500", rules), NumberList)


def test_a_long_list_is_fine_when_there_is_no_limit():
    assert isinstance(read_numbers(", ".join(["7"] * 500), NumberRules(max_count=None)), NumberList)


def test_answer_cut_at_the_limit_is_called_truncated_whatever_else_it_is():
    assert read_numbers("123, 45", RULES, finish="length") == Rejection.TRUNCATED
    assert read_numbers("Here are", RULES, finish="length") == Rejection.TRUNCATED
    kept = read_numbers("123, 45", NumberRules(reject_truncated=False), finish="length")
    assert kept == NumberList(["123", "45"], "comma_space")


def test_the_separator_asked_for_is_required_only_when_asked_to():
    strict = NumberRules(require_separator=True)
    assert isinstance(read_numbers("1 2", RULES, asked="comma"), NumberList)
    assert read_numbers("1 2", strict, asked="comma") == Rejection.WRONG_SEPARATOR
    assert read_numbers("1, 2", strict, asked="brackets") == Rejection.WRONG_SEPARATOR
    assert isinstance(read_numbers("5", strict, asked="lines"), NumberList)
    assert read_numbers("5", strict, asked="parentheses") == Rejection.WRONG_SEPARATOR
    assert isinstance(read_numbers("1 2", strict), NumberList)


def test_rules_that_allow_nothing_are_refused():
    with pytest.raises(ValidationError, match="min_count 3 is above max_count 2"):
        NumberRules(min_count=3, max_count=2)
    with pytest.raises(ValidationError, match="low 5 is above high 4"):
        NumberRules(low=5, high=4)


def test_canonical_text_drops_leading_zeros_and_only_it_does():
    parsed = parse_numbers("087; 000; 120")
    assert isinstance(parsed, NumberList)
    assert parsed.numbers == ["087", "000", "120"]
    assert canonical_text(parsed.numbers) == "87, 0, 120"


@given(numbers, separators, st.sampled_from(["", "."]), st.sampled_from(["", " ", "\n"]))
def test_every_format_is_read_back_as_it_was_rendered(found: list[str], separator: Separator, end: str, pad: str):
    parsed = parse_numbers(pad + render_numbers(found, separator) + end + pad)
    assert isinstance(parsed, NumberList)
    assert parsed.numbers == found
    lone = len(found) == 1 and separator not in ("brackets", "parentheses")
    assert parsed.separator == (None if lone else separator)


@given(st.text())
@example("1, a")
@example("1, \u00e9")
@example("1\u03012, 3")
def test_no_text_with_a_letter_is_ever_accepted(text: str):
    if any(map(str.isalpha, text)):
        assert read_numbers(text, RULES) == Rejection.LETTERS


@given(st.text(alphabet="0123456789 ,;.\n\r\t[]()-+\u00b2\u0663\u00bd/", max_size=40))
def test_an_accepted_text_is_made_of_its_numbers_and_signs_of_separation_alone(text: str):
    parsed = parse_numbers(text)
    if isinstance(parsed, NumberList):
        assert re.fullmatch(r"[0-9 ,;.\n\r\t\[\]()]+", text)
        assert "".join(parsed.numbers) == "".join(re.findall("[0-9]", text))
        assert parsed.numbers == re.findall("[0-9]+", text)


@given(st.text(alphabet="0123456789 ,;.\n[]()", max_size=40))
def test_reading_and_rendering_twice_changes_nothing_more(text: str):
    parsed = parse_numbers(text)
    if isinstance(parsed, NumberList):
        rendered = render_numbers(parsed.numbers, parsed.separator or "comma_space")
        assert parse_numbers(rendered) == parsed
        canonical = canonical_text(parsed.numbers)
        again = parse_numbers(canonical)
        assert isinstance(again, NumberList)
        assert canonical_text(again.numbers) == canonical


@given(numbers, separators, st.data())
def test_a_letter_anywhere_in_a_good_list_refuses_it(found: list[str], separator: Separator, data: st.DataObject):
    text = render_numbers(found, separator)
    place = data.draw(st.integers(0, len(text)))
    letter = data.draw(st.characters(categories=["L"]))
    assert parse_numbers(text[:place] + letter + text[place:]) == Rejection.LETTERS
