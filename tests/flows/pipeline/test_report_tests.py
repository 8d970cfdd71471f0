"""Which effects a pipeline's report tests: each that it shows, once, and no other."""

from pathlib import Path

from flows.pipeline.config import PipelineConfig
from flows.pipeline.report_tests import Key, compared_places, specific_places
from flows.pipeline.report_tests import test_together as all_tested
from flows.runs.settings import build, load_preset, merge
from sublim.evals.preference.config import Comparison
from sublim.report.shown import SpecificShown
from sublim.report.tested import RunTests
from tests.sublim.report.report_sample import comparison
from tests.sublim.report.test_specific import beside


def config(**settings: object) -> PipelineConfig:
    return build(PipelineConfig, merge(load_preset("pipeline", "quickstart"), settings))


def together(chosen: PipelineConfig, found: dict[Key, Comparison]) -> RunTests | None:
    return all_tested(compared_places(chosen, found))


def compared(folder: Path, *keys: Key, rate: float | None = 0.05) -> dict[Key, Comparison]:
    return {key: comparison(folder / str(i), key[0], 0.4 + 0.1 * i, rate=rate) for i, key in enumerate(keys)}


def test_targets_updates_and_measures_are_corrected_together(tmp_path: Path) -> None:
    keys: list[Key] = [(target, None, None, at) for target in ("owl", "wolf") for at in (16, 64)]
    found = compared(tmp_path, *keys)
    told = together(config(target="owl,wolf", evaluation={"updates": [16, 64]}), found)
    assert told is not None
    # Two targets at two checkpoints by margin and two rates, and at the last one the margin of each on the other.
    assert told.count == 2 * 2 * 3 + 2
    assert told.smallest_sign_flip_p == 0.25
    effects = [each.metrics[metric].effect for each in found.values() for metric in ("margin", "rate")]
    assert {effect.comparisons for effect in effects if effect} == {14}
    across = [found["owl", None, None, at].off_target["wolf"]["margin"].effect for at in (16, 64)]
    assert [effect and effect.comparisons for effect in across] == [None, 14]
    untested = found["owl", None, None, 64].off_target["cat"]["margin"].effect
    assert untested is not None
    assert untested.p is None
    margin = found["owl", None, None, 64].metrics["margin"].effect
    assert margin is not None
    assert margin.p_holm is not None
    assert ("owl, 64 updates, margin" in told.surviving) == (margin.p_holm <= 0.05)


def test_other_teachers_count_in_full_where_they_are_an_arm(tmp_path: Path) -> None:
    keys: list[Key] = [(target, None, None, at) for target in ("owl", "wolf") for at in (16, 64)]
    chosen = config(target="owl,wolf", arms="other_teacher", evaluation={"updates": [16, 64]})
    told = together(chosen, compared(tmp_path, *keys))
    assert told is not None
    assert told.count == 12 + 12


def test_a_comparison_of_its_own_is_not_counted_twice(tmp_path: Path) -> None:
    keys: list[Key] = [("owl", None, None, None), ("wolf", None, None, None), ("owl", "other_teacher", "wolf", None)]
    found = compared(tmp_path, *keys, rate=None)
    told = together(config(target="owl,wolf"), found)
    assert told is not None
    assert told.count == 4
    assert found["owl", "other_teacher", "wolf", None].metrics["margin"].effect is not None
    inside = found["wolf", None, None, None].off_target["owl"]["margin"].effect
    assert inside is not None
    assert inside.p is None


def test_single_units_have_no_test(tmp_path: Path) -> None:
    found: dict[Key, Comparison] = {("owl", None, None, None): comparison(tmp_path, "owl", 0.4, pairs=1)}
    assert together(config(target="owl"), found) is None


def test_specific_effects_and_gamma_are_corrected_with_the_rest(tmp_path: Path) -> None:
    found = compared(tmp_path, ("owl", None, None, None), rate=None)
    shown = SpecificShown(updates=None, against=("panda",), found=beside(("owl", "panda"), 0.6))
    told = all_tested([*compared_places(config(target="owl"), found), *specific_places([shown])])
    assert told is not None
    # The total effect on owl, two specific effects, and γ.
    assert told.count == 4
    table = shown.found.metrics["margin"]
    specific = [table.targets[word].specific for word in ("owl", "panda")]
    assert [effect.comparisons for effect in [*specific, table.gamma]] == [4, 4, 4]
    assert all(effect.p is not None and effect.p_holm is not None and effect.p_holm >= effect.p for effect in specific)
    # γ's test is the permutation's: of two teachers in one block it cannot be below a half.
    assert table.gamma.p == table.permutation.p == 0.5
    assert "γ, margin" not in told.surviving
    assert "owl specific, margin" in told.surviving
    assert (table.targets["owl"].generic.p, table.targets["owl"].total.p) == (None, None)
