"""Planned numbers of units are those that simulated studies need."""

import numpy as np
import pytest
from scipy import stats

from sublim.core.errors import UserError
from sublim.stats.intervals import FEW_UNITS, crossed_components, power
from sublim.stats.power import (
    Nested,
    Spread,
    crossed_power,
    detectable,
    nested_spread,
    plan_units,
    spread_of,
    upper_spread,
    upper_variance,
)


def studies(rng: np.random.Generator, spread: Spread, effect: float, units: int, questions: int, count: int):
    """Simulated matrices [study, unit, question] with a true mean."""
    by_unit = np.sqrt(spread.unit) * rng.normal(size=(count, units, 1))
    by_question = np.sqrt(spread.question) * rng.normal(size=(count, 1, questions))
    return effect + by_unit + by_question + np.sqrt(spread.residual) * rng.normal(size=(count, units, questions))


def test_components_of_many_pilots_average_to_the_truth() -> None:
    truth = Spread(0.5, 0.3, 0.8)
    pilots = studies(np.random.default_rng(0), truth, 0.2, 6, 20, 2000)
    found = np.mean([spread_of(pilot) for pilot in pilots], axis=0)
    assert found == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(("units", "spread"), [(5, Spread(0.2, 0.05, 0.3)), (12, Spread(0.02, 0.4, 0.5))])
def test_chance_is_how_often_simulated_intervals_leave_zero_out(units: int, spread: Spread) -> None:
    found = 0
    simulated = studies(np.random.default_rng(1), spread, 0.5, units, 30, 2000)
    for matrix in simulated:
        parts = crossed_components(matrix)
        away = abs(matrix.mean()) > stats.t.ppf(0.975, parts.df) * np.sqrt(parts.variance)
        rule = units >= FEW_UNITS or stats.ttest_1samp(matrix.mean(axis=1), 0).pvalue < 0.05
        found += away and rule
    assert crossed_power(spread, 0.5, units, 30) == pytest.approx(found / len(simulated), abs=0.04)


def test_planned_units_give_the_wanted_power_on_these_questions() -> None:
    spread = Spread(0.2, 1.0, 0.6)
    plan = plan_units(0.4, spread.of_unit(50), spread=spread, questions=50)
    # On these questions their own effects belong to the truth, so none are drawn.
    matrices = studies(np.random.default_rng(2), spread._replace(question=0.0), 0.4, plan.these_questions, 50, 4000)
    seen = (stats.ttest_1samp(matrices.mean(axis=2), 0, axis=1).pvalue < 0.05).mean()
    assert 0.78 <= seen <= 0.86
    assert power(plan.these_questions - 1, 0.4, spread.of_unit(50)) < 0.8


def test_questions_that_vary_too_much_bar_the_way_for_any_number_of_units() -> None:
    assert plan_units(0.1, 1.0, spread=Spread(0.1, 4.0, 0.5), questions=50).questions_too is None
    enough = plan_units(0.5, 1.0, spread=Spread(0.4, 0.5, 0.5), questions=50).questions_too
    assert enough is not None
    assert crossed_power(Spread(0.4, 0.5, 0.5), 0.5, enough, 50) >= 0.8


def test_sign_flips_need_six_units() -> None:
    assert plan_units(1.0, 1.0).sign_flips == 6


def test_blocks_and_seeds_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    found: list[Nested] = []
    for _ in range(500):
        blocks = np.repeat(np.arange(8), 3)
        effects = 0.6 * rng.normal(size=8)[blocks] + 0.4 * rng.normal(size=24)
        found.append(nested_spread(effects.tolist(), blocks.tolist()))
    assert np.mean(found, axis=0) == pytest.approx([0.36, 0.16], rel=0.08)
    assert Nested(0.36, 0.16).of_block(4) == pytest.approx(np.sqrt(0.4))


def test_a_pilot_without_spread_is_refused() -> None:
    with pytest.raises(UserError, match="two or more of each"):
        spread_of(np.ones((1, 5)))
    with pytest.raises(UserError, match="equally many seeds"):
        nested_spread([1.0, 2.0, 3.0], [0, 0, 1])
    with pytest.raises(UserError, match="spread above zero"):
        crossed_power(spread_of(np.ones((3, 4))), 0.1, 4, 4)


def test_a_detectable_effect_is_the_one_that_needs_so_many_units() -> None:
    found = detectable(34, 1.0)
    assert found is not None
    assert power(34, found, 1.0) == pytest.approx(0.8)
    assert found == pytest.approx(0.5, abs=0.01)
    assert detectable(4, 0.2) == pytest.approx(0.2 * (detectable(4, 1.0) or 0))
    # Two units: scipy's own noncentral t is NaN there.
    two = detectable(2, 1.0)
    assert two is not None
    drawn = np.random.default_rng(4).normal(two, 1.0, size=(20_000, 2))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.012)
    assert detectable(1, 1.0) is detectable(5, 0.0) is None


def test_the_upper_limit_of_a_variance_is_that_of_chi_square() -> None:
    assert upper_variance(2.0, 3) == pytest.approx(2.0 * 3 / 1.005174, rel=1e-5)  # the table's .2 quantile with 3 df
    values = np.random.default_rng(5).normal(0, 1.7, size=(20_000, 4))
    limits = [upper_variance(float(each), 3) for each in values.var(axis=1, ddof=1)]
    assert (np.array(limits) > 1.7**2).mean() == pytest.approx(0.8, abs=0.01)


def test_the_upper_components_come_from_the_upper_mean_squares() -> None:
    pilot = studies(np.random.default_rng(6), Spread(0.3, 0.2, 0.5), 0.1, 5, 12, 1)[0]
    rows, columns = pilot.mean(axis=1), pilot.mean(axis=0)
    residual = ((pilot - rows[:, None] - columns + pilot.mean()) ** 2).sum() / 44
    unit = rows.var(ddof=1) * 4 / stats.chi2.ppf(0.2, 4) - residual / 12
    question = columns.var(ddof=1) * 11 / stats.chi2.ppf(0.2, 11) - residual / 5
    assert upper_spread(pilot) == pytest.approx((unit, question, residual))
    assert upper_spread(pilot).unit > spread_of(pilot).unit


def test_a_plan_with_the_upper_limit_is_seldom_too_small_where_one_with_the_estimate_is_half_the_time() -> None:
    """Pilots of four units: how often the planned study has the wanted power for the true spread."""
    pilots = np.random.default_rng(7).normal(0, 1.0, size=(400, 4)).std(axis=1, ddof=1)
    needed = plan_units(1.0, 1.0).these_questions
    enough = [
        np.mean([plan_units(1.0, sd).these_questions >= needed for sd in sds])
        for sds in (pilots, [upper_variance(sd**2, 3) ** 0.5 for sd in pilots])
    ]
    assert enough[0] < 0.6
    assert enough[1] > 0.75
