"""Loss-matched comparison, on paths worked out by hand."""

import pytest

from sublim.diagnostics.matched import Along, Matched, matched_pair


def test_a_pair_is_compared_where_both_have_gained_as_much() -> None:
    student = [Along(0.1, 1.0), Along(0.2, 2.0), Along(0.4, 4.0)]
    control = [Along(0.05, 1.0), Along(0.1, 1.5), Along(0.3, 1.1)]
    found = matched_pair(student, control)
    assert isinstance(found, Matched)
    assert found.gain == pytest.approx(0.3)
    assert found.student == pytest.approx(3.0)  # half way from 2 to 4
    assert found.control == pytest.approx(1.1)
    assert found.effect == pytest.approx(1.9)


def test_equal_paths_have_no_effect() -> None:
    path = [Along(0.1, 1.0), Along(0.3, 2.0), Along(0.5, 3.0)]
    found = matched_pair(path, path)
    assert isinstance(found, Matched)
    assert found.effect == 0


def test_a_path_that_turns_back_counts_where_it_first_got_there() -> None:
    student = [Along(0.1, 0.0), Along(0.4, 4.0), Along(0.1, 9.0)]
    found = matched_pair(student, [Along(0.0, 0.0), Along(0.1, 0.0), Along(0.25, 0.0)])
    assert isinstance(found, Matched)
    assert found.student == pytest.approx(2.0)


def test_what_was_not_measured_is_not_drawn_as_a_line() -> None:
    """No value between the base and the first checkpoint, and none through fewer than three."""
    late = [Along(0.5, 1.0), Along(0.6, 2.0), Along(0.7, 3.0)]
    slow = [Along(0.1, 1.0), Along(0.2, 1.0), Along(0.3, 1.0)]
    assert "had gained more by its first checkpoint" in str(matched_pair(late, slow))
    assert "had gained more by its first checkpoint" in str(matched_pair(slow, late))
    met = matched_pair(late, [*slow, Along(0.5, 1.5)])
    assert isinstance(met, Matched)
    assert met.effect == pytest.approx(-0.5)  # at the first checkpoint itself
    assert "2 measured checkpoints of 3" in str(matched_pair(late[:2], slow))


def test_a_model_that_learned_nothing_cannot_be_matched() -> None:
    flat = [Along(-0.1, 1.0), Along(-0.1, 2.0), Along(0.0, 2.0)]
    found = matched_pair(flat, [Along(0.0, 1.0), Along(0.1, 1.0), Along(0.3, 1.0)])
    assert found == "a student or control learned nothing"
