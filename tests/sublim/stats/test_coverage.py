"""What the intervals hold with few units, normal and skewed: the seeded brother of `tests.benchmarks.coverage`."""

import numpy as np
import pytest

from sublim.stats.intervals import FEW_UNITS, crossed_bootstrap, paired_t
from tests.benchmarks.coverage import UNITS, Coverage, coverage

REPETITIONS = 2000


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, int], Coverage]:
    return {
        (shape, units): coverage(shape, "mixed", units, repetitions=REPETITIONS, draws=200, seed=3)
        for shape in ("normal", "exponential")
        for units in UNITS
    }


@pytest.mark.parametrize("units", UNITS)
def test_both_intervals_hold_the_truth_as_often_as_they_say(found: dict[tuple[str, int], Coverage], units: int) -> None:
    seen = found["normal", units]
    assert seen.t == pytest.approx(0.95, abs=0.015)  # three standard errors
    assert 0.93 <= seen.crossed <= 0.97
    assert seen.low + seen.high == pytest.approx(1 - seen.crossed)


def test_the_rule_for_few_units_is_what_makes_it_so(found: dict[tuple[str, int], Coverage]) -> None:
    assert found["normal", 2].bare < 0.91
    assert found["normal", 3].bare < found["normal", 3].crossed - 0.01
    for units in (6, 10):
        assert found["normal", units].bare == found["normal", units].crossed


@pytest.mark.parametrize("units", UNITS)
def test_skew_costs_what_the_documentation_says(found: dict[tuple[str, int], Coverage], units: int) -> None:
    """No width that depends on the spread mends it: units with a long tail above are most often all below the mean."""
    seen = found["exponential", units]
    assert 0.86 <= seen.t <= 0.94
    assert 0.86 <= seen.crossed <= 0.945
    assert seen.low > 4 * seen.high


@pytest.mark.parametrize("units", [2, 3, 4, 5, 6])
def test_below_six_units_no_side_is_narrower_than_that_of_the_paired_t(units: int) -> None:
    rng = np.random.default_rng(0)
    narrower = 0
    for _ in range(60):
        matrix = rng.exponential(size=(units, 1)) + 0.3 * rng.normal(size=(units, 20))
        t = paired_t(matrix.mean(axis=1), 0.9)
        crossed = crossed_bootstrap(matrix, rng, draws=200, level=0.9)
        assert crossed.estimate == pytest.approx(t.estimate)
        narrower += crossed.low > t.low or crossed.high < t.high
    assert narrower == 0 if units < FEW_UNITS else narrower > 20
