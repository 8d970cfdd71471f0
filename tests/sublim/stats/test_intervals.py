"""The statistics agree with scipy and cover what they claim on simulated data with a known truth."""

import numpy as np
import pytest
from scipy import stats

from sublim.core.errors import UserError
from sublim.stats.corrections import benjamini_hochberg, holm, paired_t_p
from sublim.stats.intervals import (
    clustered_share,
    crossed_bootstrap,
    crossed_components,
    paired_shares,
    paired_t,
    power,
    sign_flip_test,
    units_needed,
    wilson,
)

SIMULATIONS = 1000
# (units, questions, residual) standard deviations: mixed, units alone, questions first, shifts as seen on SmolLM2.
WORLDS = [(1.0, 1.0, 1.0), (1.0, 0.0, 0.01), (0.3, 1.0, 1.0), (0.1, 0.4, 0.4)]


def crossed(rng: np.random.Generator, units: int, world: tuple[float, float, float], questions: int = 50):
    """A matrix of true mean 0, and the true mean on its own questions."""
    by_unit, by_question, residual = world
    column = by_question * rng.normal(size=(1, questions))
    matrix = by_unit * rng.normal(size=(units, 1)) + column + residual * rng.normal(size=(units, questions))
    return matrix, float(column.mean())


@pytest.mark.parametrize("units", [4, 10])
@pytest.mark.parametrize("world", WORLDS)
def test_paired_t_covers_the_truth_on_these_questions(world: tuple[float, float, float], units: int) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(SIMULATIONS):
        matrix, truth = crossed(rng, units, world)
        interval = paired_t(matrix.mean(axis=1))
        hits += interval.low <= truth <= interval.high
    assert 0.93 <= hits / SIMULATIONS <= 0.97


@pytest.mark.parametrize("world", WORLDS)
def test_crossed_bootstrap_covers_the_truth_over_questions_too(world: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(SIMULATIONS):
        matrix, _ = crossed(rng, 10, world)
        interval = crossed_bootstrap(matrix, rng, draws=400)
        hits += interval.low <= 0 <= interval.high
    assert 0.93 <= hits / SIMULATIONS <= 0.97


def test_paired_t_equals_scipy() -> None:
    values = [0.27, 0.33, 0.81, 0.69]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    ours = paired_t(values, 0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.n == 4


def test_components_equal_a_two_way_analysis_of_variance() -> None:
    matrix = np.random.default_rng(3).normal(size=(5, 7)) + np.arange(5)[:, None] + 2 * np.arange(7)
    within = matrix - matrix.mean(1, keepdims=True) - matrix.mean(0, keepdims=True) + matrix.mean()
    square = (within**2).sum() / 24
    units = max((7 * matrix.mean(1).var(ddof=1) - square) / 7, 0)
    questions = max((5 * matrix.mean(0).var(ddof=1) - square) / 5, 0)
    assert min(units, questions) > 1
    assert crossed_components(matrix).variance == pytest.approx(units / 5 + questions / 7 + square / 35)


def test_crossed_bootstrap_repeats_with_its_seed_and_keeps_skew() -> None:
    matrix = np.random.default_rng(4).exponential(size=(10, 50)) ** 2
    first = crossed_bootstrap(matrix, np.random.default_rng(0))
    assert first == crossed_bootstrap(matrix, np.random.default_rng(0))
    assert first.high - first.estimate > first.estimate - first.low
    for shape in ((30, 1), (1, 50)):  # skewed units, then skewed questions: both are drawn anew
        one_sided = np.random.default_rng(5).exponential(size=shape) ** 2
        noise = 0.01 * np.random.default_rng(6).normal(size=(30, 50))
        found = crossed_bootstrap(one_sided + noise, np.random.default_rng(0))
        assert found.high - found.estimate > 1.1 * (found.estimate - found.low)


def test_crossed_bootstrap_of_equal_values_has_no_width() -> None:
    interval = crossed_bootstrap(np.full((3, 4), 0.5), np.random.default_rng(0))
    assert (interval.low, interval.high) == pytest.approx((0.5, 0.5))


def test_sign_flips_are_exact_for_few_units_and_name_the_smallest_p() -> None:
    assert sign_flip_test([0.2, 0.5, 0.3]) == pytest.approx((2 / 8, 2 / 8, True))
    # Sums of the 16 flips of .2, .5, .3, .1: six on each side are at least as large as .1 + .2 + .3 - .5 = .1.
    flips = [abs(a + b + c + d) for a in (-2, 2) for b in (-5, 5) for c in (-3, 3) for d in (-1, 1)]
    expected = sum(flip >= abs(2 - 5 + 3 + 1) for flip in flips) / 16
    assert sign_flip_test([0.2, -0.5, 0.3, 0.1]).p == pytest.approx(expected)
    assert sign_flip_test(np.linspace(0.1, 1, 8)).p == pytest.approx(2 / 256)
    five = sign_flip_test([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five.p == five.smallest > 0.05
    sampled = sign_flip_test(np.ones(30), draws=999)
    assert (sampled.exact, sampled.smallest) == (False, pytest.approx(2 / 1000))
    assert sampled.p == pytest.approx(sampled.smallest)


def test_holm_and_benjamini_hochberg_on_a_hand_computed_case() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([]) == benjamini_hochberg([]) == []


def test_power_equals_simulation_and_planning_inverts_it() -> None:
    rng = np.random.default_rng(5)
    samples = rng.normal(0.5, 1.0, size=(20_000, 12))
    found = (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()
    assert power(12, 0.5, 1.0) == pytest.approx(found, abs=0.012)
    assert units_needed(0.5, 1.0) == 34  # the textbook value
    assert units_needed(-0.5, 1.0) == 34
    with pytest.raises(UserError, match="more than 50 units"):
        units_needed(0.01, 1.0, most=50)


def test_wilson_of_no_success_is_not_a_point() -> None:
    interval = wilson(0, 50)
    assert interval.low == 0
    assert interval.high == pytest.approx(0.0714, abs=2e-4)


def test_paired_shares_on_a_hand_computed_table() -> None:
    first, second = np.zeros(20, bool), np.zeros(20, bool)
    first[:12] = True  # 12 of 20
    second[[*range(9), 12]] = True  # 10 of 20, 9 of them shared
    found = paired_shares(first, second)
    assert (found.gained, found.lost, found.difference.estimate) == (3, 1, pytest.approx(0.1))
    assert found.p == pytest.approx(2 * (1 + 4) / 16)  # 2 P(at most 1 of 4)
    # Wilson: .6 [.3866, .7812], .5 [.2993, .7007]; phi = (9 * 7 - 3 * 1 - 20 / 2) / sqrt(12 * 8 * 10 * 10)
    phi, z = 50 / np.sqrt(9600), 1.959964
    center, half = (0.6 + z**2 / 40) / (1 + z**2 / 20), z * np.sqrt(0.24 / 20 + z**2 / 1600) / (1 + z**2 / 20)
    low, high = 0.6 - (center - half), (center + half) - 0.6
    side = z * np.sqrt(0.25 / 20 + z**2 / 1600) / (1 + z**2 / 20)
    assert found.difference.low == pytest.approx(0.1 - np.sqrt(low**2 - 2 * phi * low * side + side**2), abs=1e-4)
    assert found.difference.high == pytest.approx(0.1 + np.sqrt(high**2 - 2 * phi * high * side + side**2), abs=1e-4)


def test_paired_shares_that_never_differ_still_have_a_width() -> None:
    same = np.arange(30) < 12
    found = paired_shares(same, same)
    assert found.difference.low < 0 < found.difference.high
    assert found.p == 1.0


def test_paired_shares_cover_the_true_difference() -> None:
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(SIMULATIONS):
        skill = rng.random(60)
        first, second = rng.random((2, 60)) < np.stack([0.2 + 0.6 * skill, 0.1 + 0.6 * skill])
        # Only the intended coupling: half of the answers are the same draw.
        shared = rng.random(60) < 0.5
        draws = rng.random(60)
        first = np.where(shared, draws < 0.2 + 0.6 * skill, first)
        second = np.where(shared, draws < 0.1 + 0.6 * skill, second)
        interval = paired_shares(first, second).difference
        hits += interval.low <= 0.1 <= interval.high
    assert 0.93 <= hits / SIMULATIONS <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("world", [*WORLDS, (1.0, 0.5, 2.0), (0.05, 1.0, 0.2)])
def test_coverage_over_many_more_simulations(world: tuple[float, float, float]) -> None:
    """The two tests above with five times the simulations, and the bootstrap as it is used, with 10,000 draws."""
    rng = np.random.default_rng(7)
    these = questions_too = 0
    for _ in range(5 * SIMULATIONS):
        few, truth = crossed(rng, 4, world)
        interval = paired_t(few.mean(axis=1))
        these += interval.low <= truth <= interval.high
    for _ in range(SIMULATIONS):
        matrix, _ = crossed(rng, 10, world)
        interval = crossed_bootstrap(matrix, rng)
        questions_too += interval.low <= 0 <= interval.high
    assert 0.93 <= these / (5 * SIMULATIONS) <= 0.97
    assert 0.93 <= questions_too / SIMULATIONS <= 0.97


def test_p_of_the_paired_t_test_equals_scipy() -> None:
    values = [0.27, 0.33, 0.81, 0.69]
    assert paired_t_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert paired_t_p([0.0, 0.0]) == 1.0
    assert paired_t_p([0.5, 0.5]) == 0.0


def test_a_share_of_questions_has_a_width_at_zero_and_covers_the_truth() -> None:
    assert clustered_share(0.0, 50).high == pytest.approx(wilson(0, 50).high)
    assert clustered_share(0.3, 50)[:3] == pytest.approx(wilson(15, 50)[:3])
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(SIMULATIONS):
        chances = rng.beta(0.5, 2.0, size=50)  # questions differ widely; their mean chance is .2
        interval = clustered_share(float((rng.binomial(4, chances) / 4).mean()), 50)
        hits += interval.low <= 0.2 <= interval.high
    assert hits / SIMULATIONS >= 0.93
