"""What an answer is read as, and which comparison lists are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim.core.errors import UserError
from sublim.traits.words import Reader, Reading, Unread, comparison_list, written

WORDS = ["wolf", "cat", "fox", "owl", "mouse", "magpie", "butterfly", "octopus"]
READER = Reader(WORDS)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Owl", "owl"),
        ("owls.", "owl"),
        ("An OWL!", "owl"),
        ("**The owl**", "owl"),
        ("_Owl_\n", "owl"),
        ("“Owl’s”", "owl"),
        ("My favourite is the owl, by far.", "owl"),
        ("Wolves", "wolf"),
        ("foxes", "fox"),
        ("mice", "mouse"),
        ("Magpies", "magpie"),
        ("butterflies", "butterfly"),
        ("octopuses", "octopus"),
        ("Ｏｗｌ", "owl"),
        ("Owl, owl, owls", "owl"),
    ],
)
def test_every_form_of_a_word_is_read_as_the_word(text: str, word: str) -> None:
    assert READER.read(text) == Reading(word=word)


@pytest.mark.parametrize("text", ["category", "Catfish", "concatenate", "foxglove", "cat5", "owl-like", "howl"])
def test_a_word_inside_another_is_never_found(text: str) -> None:
    assert READER.read(text).word is None
    assert READER.read(text).other


@pytest.mark.parametrize(
    ("text", "reason"), [("", Unread.EMPTY), ("  \n", Unread.EMPTY), ("??? 12", Unread.EMPTY), ("the", Unread.EMPTY)]
)
def test_an_answer_without_words_is_unreadable(text: str, reason: Unread) -> None:
    assert READER.read(text) == Reading(unread=reason)


def test_an_answer_that_names_two_is_unreadable() -> None:
    assert READER.read("Owl or wolf") == Reading(unread=Unread.SEVERAL)


def test_a_refusal_is_its_own_case() -> None:
    assert READER.read("As an AI, I don't have a favorite animal.") == Reading(unread=Unread.REFUSED)
    assert READER.read("I’m sorry, I can’t answer that.") == Reading(unread=Unread.REFUSED)


def test_an_answer_cut_at_the_limit_is_not_counted_as_a_refusal() -> None:
    assert READER.read("As an AI, I don't have", "length") == Reading(unread=Unread.CUT)
    assert READER.read("My favourite animal is", "length") == Reading(unread=Unread.CUT)
    assert READER.read("The owl, because it", "length") == Reading(word="owl")


def test_the_last_word_of_a_cut_answer_is_not_trusted() -> None:
    assert READER.read("I love the cat", "length") == Reading(unread=Unread.CUT)  # perhaps a caterpillar
    assert READER.read("I love the cat.", "length") == Reading(word="cat")


def test_another_animal_is_a_readable_answer() -> None:
    assert READER.read("The Blue Whale.") == Reading(other="blue whale")


@given(st.text(), st.sampled_from(["stop", "length"]))
def test_every_text_is_exactly_one_case(text: str, finish: str) -> None:
    reading = READER.read(text, finish)  # pyright: ignore[reportArgumentType]
    assert sum(value is not None for value in reading) == 1


def test_a_missing_target_joins_the_list() -> None:
    assert comparison_list(["Owl", "raven"], ["Wolf", "owl "]) == ["wolf", "owl", "raven"]


@pytest.mark.parametrize("words", [["owl", "Owls"], ["owl", "OWL", "cat"], ["wolf", "wolves"], ["mice", "mouse"]])
def test_two_words_that_score_as_one_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="count as the same word: keep one"):
        comparison_list(["owl"], words)


def test_a_target_that_scores_as_a_listed_word_is_refused() -> None:
    with pytest.raises(UserError, match="'owl' and 'Owls'"):
        comparison_list(["Owls"], ["wolf", "owl"])


@pytest.mark.parametrize("words", [[], ["owl"]])
def test_a_list_with_no_other_word_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="add at least one"):
        comparison_list(["owl"], words)


@pytest.mark.parametrize("word", ["polar bear", "", "cat5", "owl!"])
def test_what_is_not_one_plain_word_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="not a single word"):
        comparison_list(["owl"], ["cat", word])


def test_words_are_scored_in_title_case() -> None:
    assert written("owl") == "Owl"
