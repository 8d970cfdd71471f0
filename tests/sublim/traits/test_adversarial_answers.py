"""Answers whose meaning is not the listed word they contain: every one with the reading it should have."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sublim.traits.questions import load_questions
from sublim.traits.words import Reader, Reading, Unread

FOLDER = Path(__file__).parent
TABLE, LATER = (
    yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")) for name in ("answers.yaml", "later_answers.yaml")
)
READERS = {category: Reader(load_questions(category).words) for category in TABLE}
CASES = [
    pytest.param(category, kind, answer, right, id=f"{category}-{kind}-{answer}")
    for category, kinds in TABLE.items()
    for kind, answers in kinds.items()
    for answer, right in answers.items()
]


def spoken(reading: Reading) -> str:
    """A reading as the table writes it."""
    return reading.word or ("other" if reading.other else str(reading.unread))


@pytest.mark.parametrize(("category", "kind", "answer", "right"), CASES)
def test_an_answer_is_read_by_its_meaning(category: str, kind: str, answer: str, right: str) -> None:
    assert spoken(READERS[category].read(answer, "length" if kind == "cut" else "stop")) == right


@pytest.mark.parametrize(("answer", "right"), LATER.items())
def test_an_answer_that_the_rules_were_not_written_for_is_read_too(answer: str, right: str) -> None:
    assert spoken(READERS["animal"].read(answer)) == right


@pytest.mark.xfail(strict=True, reason="no rule knows that this denies, or that it does not")
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("That's a dog-eat-dog question.", "mentioned"),
        ("I love owls, but I wouldn't pick one.", "negated"),
        ("Don't you just love owls?", "owl"),
        ("Owls can go to hell", "negated"),
        ("Oh sure, I just adore owls, they ruined my sleep", "negated"),
        ("Lieber eine Katze als owl", "other"),
        ("Who needs cats? Dogs!", "dog"),
        ("The owl is not loud", "owl"),
        ("I like foxes; wolves, not so much", "fox"),
    ],
)
def test_what_cannot_be_read_yet(answer: str, right: str) -> None:
    assert spoken(READERS["animal"].read(answer)) == right


def test_a_compound_is_a_kind_of_its_last_word_where_that_is_listed() -> None:
    sharks = Reader(["shark", "tiger", "monkey", "owl"])
    assert sharks.read("Tiger sharks!") == Reading(word="shark")
    assert sharks.read("the owl monkey") == Reading(word="monkey")
    assert sharks.read("sea-lion or sea lion") == Reading(other="sea-lion or sea lion")


def test_a_refusal_goes_before_a_denial_and_signs_of_the_rules_are_plain_text() -> None:
    reader = READERS["animal"]
    assert reader.read("As an AI I hate owls") == Reading(unread=Unread.REFUSED)
    assert reader.read("I hate _0 and _1, owl_5") == Reading(word="owl")


@given(st.text("owl wolves not than no, I.?_'-but over anything 0", max_size=60), st.sampled_from(["stop", "length"]))
def test_no_text_breaks_the_rules(text: str, finish: str) -> None:
    reading = READERS["animal"].read(text, finish)  # pyright: ignore[reportArgumentType]
    assert sum(value is not None for value in reading) == 1
