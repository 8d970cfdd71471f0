"""An effect counts as nothing only where two one-sided tests say so, as often wrongly as they promise."""

import numpy as np
import pytest
from scipy import stats

from sublim.stats.equivalence import equivalence


def test_with_a_bound_in_nats_it_is_the_ninety_percent_interval_inside_the_bound() -> None:
    rng = np.random.default_rng(0)
    told: list[bool] = []
    for _ in range(200):
        effects = rng.normal(0.05, 0.1, size=5)
        interval = stats.ttest_1samp(effects, 0).confidence_interval(0.9)
        found = equivalence(effects, [0.15] * 5)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        inside = interval.low > -0.15 and interval.high < 0.15
        assert (found.verdict == "shown to be nothing") == inside
        told.append(inside)
    assert 20 < sum(told) < 180


def test_an_effect_at_its_bound_is_taken_for_nothing_once_in_twenty() -> None:
    rng = np.random.default_rng(1)
    effects = rng.normal(0.2, 0.05, size=(4000, 5))
    mains = rng.normal(0.8, 0.2, size=(4000, 5))  # whose quarter is .2 on average: its own spread counts too
    for limits in (np.full((4000, 5), 0.2), 0.25 * mains):
        wrong = [equivalence(*each).verdict == "shown to be nothing" for each in zip(effects, limits, strict=True)]
        assert np.mean(wrong) == pytest.approx(0.05, abs=0.012)


def test_a_main_effect_that_is_not_clear_shows_nothing() -> None:
    effects = [0.01, -0.02, 0.01]
    assert equivalence(effects, [0.2, 0.21, 0.19]).verdict == "shown to be nothing"
    assert equivalence(effects, [1.5, -0.6, 0.3]).verdict == "not shown to be nothing"  # of no smaller mean
    assert equivalence(effects, [-0.2, -0.21, -0.19]).verdict == "not shown to be nothing"


def test_what_is_there_is_said_and_one_unit_shows_neither() -> None:
    assert equivalence([0.5, 0.52, 0.48], [0.1] * 3).verdict == "something is there"
    assert equivalence([0.05, 0.052, 0.048], [0.1] * 3).verdict == "shown to be nothing"
    assert equivalence([0.0], [0.1]) == ("not shown to be nothing", None, None)
