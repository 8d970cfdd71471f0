"""Specific, generic and total effects and γ: against a second computation, under nulls, and with planted effects."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig, Effect
from sublim.evals.effects import units_of
from sublim.evals.preference.config import Metric, Scores
from sublim.evals.specificity.compare import compare_targets
from sublim.evals.specificity.config import CompareTargetsConfig, Specificity
from sublim.evals.specificity.permutation import permute_teachers
from sublim.evals.specificity.tables import Values, table_of
from tests.sublim.evals.specificity.plain import brute_force_p, margins, recomputed

WORDS = ("wolf", "cat", "owl", "panda", "fox")
TARGETS = ("owl", "wolf", "fox")
QUESTIONS = 9


class Study(NamedTuple):
    """The payloads of one simulated study."""

    students: dict[str, list[Path]]
    controls: list[Path]
    blocks: list[int]


def save(folder: Path, logs: np.ndarray, rates: np.ndarray | None = None) -> Path:
    """A scores.json from log-probs by question and word; its words are in an order of their own."""
    folder.mkdir(parents=True)
    values = (logs - logs.mean(axis=1, keepdims=True)) * len(WORDS) / (len(WORDS) - 1)

    def metric(column: np.ndarray) -> Metric:
        return Metric(mean=float(column.mean()), per_question=column.tolist())

    none = Metric(mean=None, per_question=[None] * len(logs), reason="no answers were sampled (samples = 0)")
    found = Scores(
        target=WORDS[0],
        words=[*reversed(WORDS)],
        questions=[f"q{i}" for i in range(len(logs))],
        metrics={
            "margin": {word: metric(values[:, i]) for i, word in enumerate(WORDS)},
            **{
                key: {word: none if rates is None else metric(rates[:, i]) for i, word in enumerate(WORDS)}
                for key in ("rate", "rate_readable")
            },
        },
        answers=None,
    )
    (folder / "scores.json").write_text(found.model_dump_json())
    return folder


def simulated(
    root: Path,
    blocks: list[int],
    *,
    own: float = 0.0,
    generic: float = 0.0,
    seed: int = 1,
    shared_control: bool = False,
    rated: bool = False,
    noise: float = 0.1,
) -> Study:
    """Students whose teachers move their own word by `own`, and the word owl whatever they prefer by `generic`."""
    rng = np.random.default_rng(seed)
    question = rng.normal(0, 1, (QUESTIONS, len(WORDS)))

    def model(name: str, shift: dict[str, float]) -> Path:
        logs = question + rng.normal(0, noise, question.shape)
        for word, by in shift.items():
            logs[:, WORDS.index(word)] += by
        return save(root / name, logs, rng.random(question.shape) if rated else None)

    students = {
        target: [
            model(f"{target}{i}", {target: own, **({"owl": own * (target == "owl") + generic} if generic else {})})
            for i in range(len(blocks))
        ]
        for target in TARGETS
    }
    base = model("base", {})
    return Study(students, [base if shared_control else model(f"c{i}", {}) for i in range(len(blocks))], blocks)


def compared(study: Study, out: Path, *, teachers: list[Path] | None = None) -> Specificity:
    config = CompareTargetsConfig(
        targets=TARGETS, words=WORDS, compare=CompareConfig(blocks=tuple(study.blocks), draws=400, seed=5)
    )
    out.mkdir()
    students = [each for target in TARGETS for each in study.students[target]]
    compare_targets(out, config, scratch=out, students=students, controls=study.controls, teachers=teachers)
    return Specificity.model_validate_json((out / "specificity.json").read_bytes())


def numbers(effect: Effect) -> tuple[float | None, ...]:
    return effect.estimate, effect.low, effect.high, effect.low_questions, effect.high_questions


@pytest.mark.parametrize("shared_control", [False, True])
@pytest.mark.parametrize("blocks", [[0] * 7, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]])
def test_a_second_computation_from_the_files_gives_the_same_numbers(
    tmp_path: Path, blocks: list[int], shared_control: bool
) -> None:
    study = simulated(tmp_path, blocks, own=0.2, generic=0.1, shared_control=shared_control)
    found = compared(study, tmp_path / "out").metrics["margin"]
    again = recomputed(study.students, study.controls, blocks, draws=400, seed=5)
    for target, effects in found.targets.items():
        for part in ("total", "generic", "specific"):
            assert numbers(getattr(effects, part)) == pytest.approx(again[f"{target} {part}"], abs=1e-9), (target, part)
        parts = effects.generic.estimate + effects.specific.estimate
        assert effects.total.estimate == pytest.approx(parts, abs=1e-12)
    assert numbers(found.gamma) == pytest.approx(again["gamma"], abs=1e-9)
    own = np.mean([effects.specific.estimate for effects in found.targets.values()])
    assert found.gamma.estimate == pytest.approx(own, abs=1e-12)
    for target in TARGETS:
        for word in WORDS:
            moved = margins(study.students[target], word).mean() - margins(study.controls, word).mean()
            assert found.moved[target][word] == pytest.approx(moved, abs=1e-9)
        assert found.table[target] == {word: found.moved[target][word] for word in TARGETS}


def test_the_permutation_test_of_three_targets_in_two_blocks_agrees_with_brute_force(tmp_path: Path) -> None:
    seen: set[float] = set()
    for seed in range(6):
        blocks = [0, 0, 1, 1]
        study = simulated(tmp_path / str(seed), blocks, own=0.005 * seed, seed=seed)
        test = compared(study, tmp_path / f"out{seed}").metrics["margin"].permutation
        tables = np.array(
            [[[margins(study.students[s][at : at + 2], t).mean() for t in TARGETS] for s in TARGETS] for at in (0, 2)]
        )
        assert test.p == pytest.approx(brute_force_p(tables), abs=1e-12)
        assert (test.arrangements, test.exact, test.smallest) == (36, True, 1 / 36)
        seen.add(test.p)
    assert len(seen) > 3


def test_more_arrangements_than_draws_are_sampled_and_say_so() -> None:
    rng = np.random.default_rng(0)
    null = rng.normal(size=(2, 4, 4))
    drawn = permute_teachers(null, draws=199, seed=3)
    assert (drawn.exact, drawn.arrangements, drawn.smallest) == (False, 199, 1 / 200)
    exact = permute_teachers(null, draws=576, seed=3)
    assert exact.exact
    assert abs(drawn.p - exact.p) < 0.12
    planted = permute_teachers(null + 9 * np.eye(4), draws=199, seed=3)
    # Of 199 draws from 576 arrangements perhaps one is the arrangement itself.
    assert planted.p <= 3 / 200
    assert permute_teachers(null[:1, :2, :2], draws=99, seed=0).smallest == 0.5


def test_under_the_null_p_is_uniform_and_the_interval_covers_zero_at_its_rate() -> None:
    """Teachers that differ (each block and target has its own shift of every word) but not by their target."""
    rng = np.random.default_rng(11)
    runs, blocks = 400, (0, 1, 2, 3, 4, 5)
    config = CompareTargetsConfig(
        targets=TARGETS, words=WORDS, compare=CompareConfig(blocks=blocks, draws=100), permutations=99
    )
    units = units_of(len(blocks), len(blocks), blocks)
    p, covered = np.empty(runs), 0
    for i in range(runs):
        of_word = rng.normal(0, 1, (1, 1, len(WORDS), 1))  # what every teacher does
        of_teacher = rng.standard_exponential((len(TARGETS), len(blocks), len(WORDS), 1)) - 1
        noise = rng.normal(0, 0.3, (len(TARGETS), len(blocks), len(WORDS), QUESTIONS))
        students = of_word + of_teacher + noise
        controls = rng.normal(0, 0.3, students.shape)
        found = table_of(Values(students, controls), units, config)
        p[i] = found.permutation.p
        assert found.gamma.low is not None
        assert found.gamma.high is not None
        covered += found.gamma.low <= 0 <= found.gamma.high
    # Standard errors: .011 of the coverage, .015 and .025 of the shares of p.
    assert 0.915 < covered / runs < 0.985
    assert 0.05 < (p <= 0.1).mean() < 0.15
    assert 0.42 < (p <= 0.5).mean() < 0.58
    assert p.min() >= 1 / 100


def test_a_planted_specific_effect_is_found_and_ranked_first(tmp_path: Path) -> None:
    study = simulated(tmp_path, [0, 1, 2, 3, 4], own=0.5)
    found = compared(study, tmp_path / "out").metrics["margin"]
    assert found.gamma.low is not None
    assert found.gamma.low > 0.5
    assert found.permutation.p < 0.01
    for effects in found.targets.values():
        assert effects.specific.low is not None
        assert effects.specific.low > 0
        assert effects.rank_total.rank == effects.rank_specific.rank == 1
        assert effects.rank_total.of == effects.rank_specific.of == len(WORDS)


def test_a_purely_generic_effect_gives_no_specific_effect_and_no_gamma(tmp_path: Path) -> None:
    """Every teacher moves owl: owl's total effect is large and wholly generic."""
    study = simulated(tmp_path, [0, 1, 2, 3, 4], generic=0.5, noise=0.02)
    found = compared(study, tmp_path / "out").metrics["margin"]
    owl = found.targets["owl"]
    assert owl.total.low is not None
    assert owl.total.low > 0.45
    assert owl.rank_total.rank == 1
    assert owl.generic.estimate == pytest.approx(owl.total.estimate, abs=0.02)
    assert abs(owl.specific.estimate) < 0.02
    assert abs(found.gamma.estimate) < 0.02
    assert found.gamma.low is not None
    assert found.gamma.high is not None
    assert found.gamma.low < 0 < found.gamma.high
    assert found.permutation.p > 0.05


def test_with_two_targets_the_other_target_is_no_placebo(tmp_path: Path) -> None:
    """Its own teacher moves it, so it would outrank a target that moves less than it does."""
    words, units = ("owl", "panda", "fox", "cat"), units_of(2, 2, (0, 0))
    students = np.zeros((2, 2, 4, 3))
    students[0, :, 0], students[1, :, 1], students[:, :, 2] = 0.3, 0.9, 0.2
    config = CompareTargetsConfig(targets=("owl", "panda"), words=words)
    owl = table_of(Values(students, np.zeros_like(students)), units, config).targets["owl"]
    assert (owl.rank_specific.rank, owl.rank_specific.of) == (1, 3)
    assert (owl.rank_total.rank, owl.rank_total.of) == (1, 4)
    assert owl.specific.estimate == pytest.approx(0.3)


def test_words_that_moved_exactly_as_far_rank_before_the_target() -> None:
    students, units = np.ones((2, 2, 3, 2)), units_of(2, 2, (0, 0))
    config = CompareTargetsConfig(targets=("owl", "cat"), words=("owl", "cat", "fox"))
    found = table_of(Values(students, np.zeros_like(students)), units, config)
    assert found.targets["owl"].rank_total.rank == 3
    assert found.permutation.p == 1.0


def test_one_block_says_one_teacher_and_blocks_are_the_units(tmp_path: Path) -> None:
    one = compared(simulated(tmp_path / "one", [0, 0, 0]), tmp_path / "a")
    assert one.about_units.startswith("One teacher for each target")
    assert (one.unit, one.metrics["margin"].gamma.units, one.leads) == ("seed", 3, "these_questions")
    assert one.metrics["margin"].permutation.arrangements == 6
    several = compared(simulated(tmp_path / "six", [0, 0, 1, 2, 3, 4, 5]), tmp_path / "b")
    assert "6 blocks" in several.about_units
    assert (several.unit, several.metrics["margin"].gamma.units, several.leads) == ("block", 6, "questions_too")
    single = compared(simulated(tmp_path / "single", [0]), tmp_path / "c").metrics["margin"]
    assert single.gamma.low is None
    assert single.gamma.reason == "one unit has no spread"


def test_a_rate_is_compared_where_it_was_sampled_and_missing_with_its_reason_elsewhere(tmp_path: Path) -> None:
    without = compared(simulated(tmp_path / "without", [0, 0]), tmp_path / "a")
    why = "no answers were sampled (samples = 0)"
    assert without.missing == {"rate": why, "rate_readable": why}
    study = simulated(tmp_path / "with", [0, 0], rated=True)
    rated = compared(study, tmp_path / "b").metrics["rate"].targets["owl"].specific
    read = {
        target: [json.loads((each / "scores.json").read_text())["metrics"]["rate"]["owl"]["mean"] for each in folders]
        for target, folders in study.students.items()
    }
    assert rated.estimate == pytest.approx(np.mean(read["owl"]) - np.mean([*read["wolf"], *read["fox"]]))


def test_a_question_without_a_value_is_left_out_of_every_number(tmp_path: Path) -> None:
    study = simulated(tmp_path, [0, 0, 0], own=0.3)
    whole = compared(study, tmp_path / "whole").metrics["margin"]
    path = study.students["fox"][1] / "scores.json"
    tree = json.loads(path.read_text())
    for metric in tree["metrics"]["margin"].values():
        metric["per_question"][4] = None
    path.write_text(json.dumps(tree))
    found = compared(study, tmp_path / "part").metrics["margin"]
    for target, effects in found.targets.items():
        kept = [v for i, v in enumerate(whole.targets[target].specific.per_question) if i != 4 and v is not None]
        assert effects.specific.questions == QUESTIONS - 1
        assert effects.specific.estimate == pytest.approx(np.mean(kept))


def test_targets_may_have_controls_of_their_own(tmp_path: Path) -> None:
    """As in a sweep, whose cells filter the base's rows beside their own teacher's: total is what each cell reports."""
    study = simulated(tmp_path, [0, 0, 0], own=0.3)
    other = simulated(tmp_path / "other", [0, 0, 0], seed=9)
    config = CompareTargetsConfig(targets=TARGETS, words=WORDS, compare=CompareConfig(draws=200))
    compare_targets(
        tmp_path,
        config,
        scratch=tmp_path,
        students=[each for target in TARGETS for each in study.students[target]],
        controls=[*study.controls, *other.controls, *study.controls],
    )
    found = Specificity.model_validate_json((tmp_path / "specificity.json").read_bytes()).metrics["margin"].targets
    for target, controls in (("owl", study.controls), ("wolf", other.controls)):
        total = margins(study.students[target], target).mean() - margins(controls, target).mean()
        assert found[target].total.estimate == pytest.approx(total)
        parts = found[target].generic.estimate + found[target].specific.estimate
        assert parts == pytest.approx(total)
    shared = compared(study, tmp_path / "shared").metrics["margin"].targets["wolf"].specific
    assert found["wolf"].specific.estimate == pytest.approx(shared.estimate)


def test_teachers_are_shown_by_target(tmp_path: Path) -> None:
    study = simulated(tmp_path, [0, 0])
    given = [study.students[target][0] for target in TARGETS]
    found = compared(study, tmp_path / "out", teachers=given).metrics["margin"].teachers
    assert found["wolf"]["panda"] == pytest.approx(margins([given[1]], "panda").mean())


def test_scores_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    study = simulated(tmp_path, [0, 0])
    config = CompareTargetsConfig(targets=TARGETS, words=(*WORDS, "otter"), compare=CompareConfig(blocks=(0, 0)))
    students = [each for target in TARGETS for each in study.students[target]]
    with pytest.raises(UserError, match="different words"):
        compare_targets(tmp_path, config, scratch=tmp_path, students=students, controls=study.controls)
    with pytest.raises(UserError, match="students"):
        compare_targets(tmp_path, config, scratch=tmp_path, students=students[:-1], controls=study.controls)
    with pytest.raises(ValueError, match="among `words`"):
        CompareTargetsConfig(targets=("owl", "otter"), words=WORDS)
