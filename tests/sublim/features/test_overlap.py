"""Overlaps of feature sets: chance that keeps features' company is what it says, planted overlaps stand out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from scipy.sparse import csr_array

from sublim.features.config import ContrastConfig, OverlapConfig
from sublim.features.contrast import RowFeatures, contrast, sum_sides
from sublim.features.overlap import FeatureSet, drawn_set, overlaps, paired_effects, rate_classes, unpaired_effects

Array = np.ndarray[Any, Any]


def side(values: Array) -> RowFeatures:
    """Rows of features, zeros left out."""
    row, feature = values.nonzero()
    ids = pl.Series(range(len(values)), dtype=pl.Int64)
    columns = {"id": pl.Series(row, dtype=pl.Int64), "feature": pl.Series(feature, dtype=pl.UInt32)}
    return RowFeatures(ids, pl.DataFrame({**columns, "value": values[row, feature]}))


def features_of(target: Array, control: Array, config: OverlapConfig, seed: int, *, pair: bool = True) -> FeatureSet:
    """The set of one contrast and its permuted fellows."""
    a, b = side(target), side(control)
    table = contrast(sum_sides(a, b, pair=pair), ContrastConfig(sae="s", pair=pair))
    return drawn_set(table, a, b, config, np.random.default_rng(seed), pair=pair)


def clustered_sides(rng: np.random.Generator, moved: Sequence[int], n: int = 40) -> tuple[Array, Array]:
    """Two sides of n rows with 40 clusters of three features that fire together; `moved` clusters fire more."""
    active = rng.gamma(2.0, size=(2, n, 40))
    active[0][:, moved] += 1.5
    values = np.repeat(active, 3, axis=2) * (1 + 0.02 * rng.standard_normal((2, n, 120)))
    return values[0], values[1]


@pytest.mark.parametrize("pair", [True, False])
def test_permuted_effects_are_those_of_rows_that_changed_sides(pair: bool) -> None:
    """Every effect that the sums give is the one that `contrast` gives when the rows themselves are relabelled, with
    the mean difference of the two sides taken out."""
    rng = np.random.default_rng(1)
    values = rng.gamma(1.0, size=(2, 6, 5)) * (rng.random((2, 6, 5)) < 0.6)
    a, b = (csr_array(each) for each in values)
    effects = (paired_effects if pair else unpaired_effects)(a, b, np.random.default_rng(7), 20)
    values = values - values.mean(1, keepdims=True) + values.mean((0, 1))
    again = np.random.default_rng(7)
    if pair:
        swapped = again.choice((-1.0, 1.0), size=(20, 6)) < 0
        sides = [
            (np.where(swap[:, None], values[1], values[0]), np.where(swap[:, None], values[0], values[1]))
            for swap in swapped
        ]
    else:
        dealt = again.permuted(np.tile(np.repeat((1.0, 0.0), (6, 6)), (20, 1)), axis=1) > 0
        both = np.concatenate(values)
        sides = [(both[first], both[~first]) for first in dealt]
    for found, (one, other) in zip(effects, sides, strict=True):
        table = contrast(sum_sides(side(one), side(other), pair=pair), ContrastConfig(sae="s", pair=pair))
        assert found[table["feature"].to_numpy()] == pytest.approx(table["effect"].to_numpy(), abs=1e-9)
    assert len({*effects[:, 0]}) > 2


def test_chance_for_features_that_fire_together_is_what_its_p_says() -> None:
    """Contrasts whose moved clusters of three have nothing to do with each other: p < .005 in about .005 of pairs.
    Features drawn one by one, as if none had companions, find it in several times as many."""
    rng, config = np.random.default_rng(11), OverlapConfig(size=18, permutations=999)
    found, alone = list[float](), list[float]()
    for number in range(400):
        sets = {}
        for name in "ab":
            moved = rng.choice(40, 6, replace=False).tolist()
            sets[name] = features_of(*clustered_sides(rng, moved), config, seed=number)
        [row] = overlaps(sets)
        assert row.p is not None
        found.append(row.p)
        alone.append(float(stats.hypergeom(120, *row.sizes).sf(row.shared - 1)))
    low, usual, one_by_one = (
        float(np.mean(np.array(p) < level)) for p, level in ((found, 0.005), (found, 0.2), (alone, 0.005))
    )
    assert low <= 0.005 + 3 * np.sqrt(0.005 / 400)
    assert 0.1 < usual <= 0.2 + 3 * np.sqrt(0.2 / 400)  # numbers shared are whole, so p is a little too large
    assert one_by_one > 0.02


def test_clusters_that_both_contrasts_move_stand_out_among_a_hundred_other_pairs() -> None:
    rng, config = np.random.default_rng(6), OverlapConfig(size=15)
    moved = {f"set {i:02d}": rng.choice(40, 5, replace=False).tolist() for i in range(15)}
    moved["set 07"] = moved["set 03"]
    sets = {
        name: features_of(*clustered_sides(rng, own), config, seed=i) for i, (name, own) in enumerate(moved.items())
    }
    rows = overlaps(sets)
    assert len(rows) == 105
    corrected = {(row.first, row.second): row.p_adjusted or 0 for row in rows}
    assert corrected.pop(("set 03", "set 07")) < 0.05
    assert min(corrected.values()) > 0.05


def test_permuted_sets_have_as_many_features_of_each_firing_rate() -> None:
    rng, config = np.random.default_rng(2), OverlapConfig(size=9, bins=3, permutations=200)
    rates = np.repeat((0.1, 0.4, 0.9), 20)
    values = rng.gamma(2.0, size=(2, 80, 60)) * (rng.random((2, 80, 60)) < rates)
    values[0][:, 40:49] += 3  # of the densest class
    found = features_of(values[0], values[1], config, seed=0)
    table = contrast(sum_sides(side(values[0]), side(values[1]), pair=True), ContrastConfig(sae="s"))
    classes = rate_classes(table, 3)
    assert sorted(found.features) == [*range(40, 49)]
    assert found.drawn.shape == (200, 9)
    own = [int(np.isin(each, found.features).sum()) for each in classes]
    assert [np.isin(found.drawn, each).sum(1).tolist() for each in classes] == [[count] * 200 for count in own]
    assert all(len({*line}) == 9 for line in found.drawn.tolist())
    assert len({tuple(sorted(line)) for line in found.drawn.tolist()}) > 100


def test_a_set_of_no_features_has_no_p_and_nothing_shared_is_no_evidence() -> None:
    none = FeatureSet([], np.zeros((99, 0), dtype=np.int64))
    some = FeatureSet([1, 2], np.tile([1, 2], (99, 1)))
    other = FeatureSet([3, 4], np.tile([3, 4], (99, 1)))
    [row] = overlaps({"a": none, "b": some})
    assert (row.p, row.p_adjusted, row.shared, row.chance) == (None, None, 0, 0)
    [row] = overlaps({"a": some, "b": other})
    assert (row.p, row.shared) == (1.0, 0)
    # Rows whose sides do not matter give the same set every time: all that is shared is chance.
    [row] = overlaps({"a": some, "b": some})
    assert (row.p, row.shared, row.chance, row.low, row.high) == (1.0, 2, 2, 2, 2)
