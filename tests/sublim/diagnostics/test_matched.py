"""Loss-matched comparison, on paths worked out by hand."""

import pytest

from sublim.diagnostics.matched import Along, matched_pair


def test_a_pair_is_compared_where_both_have_gained_as_much() -> None:
    student = [Along(0.0, 1.0), Along(0.2, 2.0), Along(0.4, 4.0)]
    control = [Along(0.0, 1.0), Along(0.1, 1.5), Along(0.3, 1.1)]
    found = matched_pair(student, control)
    assert found is not None
    assert found.gain == pytest.approx(0.3)
    assert found.student == pytest.approx(3.0)  # half way from 2 to 4
    assert found.control == pytest.approx(1.1)
    assert found.effect == pytest.approx(1.9)


def test_equal_paths_have_no_effect() -> None:
    path = [Along(0.0, 1.0), Along(0.5, 3.0)]
    found = matched_pair(path, path)
    assert found is not None
    assert found.effect == 0


def test_a_path_that_turns_back_counts_where_it_first_got_there() -> None:
    student = [Along(0.0, 0.0), Along(0.4, 4.0), Along(0.1, 9.0)]
    found = matched_pair(student, [Along(0.0, 0.0), Along(0.2, 0.0)])
    assert found is not None
    assert found.student == pytest.approx(2.0)


def test_a_model_that_learned_nothing_cannot_be_matched() -> None:
    assert matched_pair([Along(0.0, 1.0), Along(-0.1, 2.0)], [Along(0.0, 1.0), Along(0.3, 1.0)]) is None
