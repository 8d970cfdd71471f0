"""All effects of a run are corrected together, each once."""

import numpy as np
import pytest
from scipy import stats

from sublim.evals.effect_config import CompareConfig, Effect
from sublim.evals.effects import paired_effect, units_of
from sublim.evals.tested import corrected
from sublim.stats.corrections import holm


def effect(*per_unit: float) -> Effect:
    n = len(per_unit)
    matrix = np.array(per_unit)[:, None] + np.zeros((1, 3))
    return paired_effect(matrix, np.ones(3, dtype=bool), units_of(n, n, ()), CompareConfig(draws=100))


def test_every_test_has_its_p_its_correction_and_their_number() -> None:
    given = {"a": effect(0.2, 0.3, 0.25), "b": effect(0.1, -0.3, 0.2), "c": effect(0.5, 0.1, 0.4), "lost": None}
    found = corrected(given)
    assert [*found] == ["a", "b", "c"]
    expected = [stats.ttest_1samp(each.per_unit, 0).pvalue for each in found.values()]
    assert [each.p for each in found.values()] == pytest.approx(expected)
    assert [each.p_holm for each in found.values()] == pytest.approx(holm(expected))
    assert {each.comparisons for each in found.values()} == {3}
    assert found["a"].p_holm == pytest.approx(3 * expected[0])
    assert found["a"].model_copy(update={"p": None, "p_holm": None, "comparisons": None}) == given["a"]


def test_what_cannot_be_tested_is_not_counted_and_a_permutations_p_is_kept() -> None:
    exact = effect(0.2, 0.3, 0.25).model_copy(update={"p": 0.01})
    found = corrected({"one unit": effect(0.4), "alike": effect(0.2, 0.2), "exact": exact, "t": effect(0.1, 0.4)})
    assert [*found] == ["exact", "t"]
    assert (found["exact"].p, found["exact"].p_holm, found["exact"].comparisons) == (0.01, 0.02, 2)


def test_without_effects_there_is_no_test() -> None:
    assert corrected({}) == corrected({"lost": None}) == {}
