"""Side effects of training in a pipeline run: scores on MMLU-Pro, and how far answers moved from the base's."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from flows.pipeline.arms import Contrast, at_checkpoints
from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import ModelKey
from flows.pipeline.models import ModelState, sit_exam
from flows.pipeline.plan import words_of
from flows.pipeline.study import Comparison
from sublim.evals.effect_config import CompareConfig
from sublim.evals.mmlu_pro.config import (
    AskMmluProConfig,
    MmluProComparison,
    PrepareQuestionsConfig,
    ScoreMmluProConfig,
)
from sublim.evals.preference.config import Comparison as Compared
from sublim.evals.total_variation.config import CompareShiftConfig, ShiftComparisons
from sublim.report.shown import CostShown
from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from sublim.traits.questions import Questions
from tasks.lanes import side_by_side
from tasks.stages import compare_mmlu_pro, compare_shift, prepare_mmlu_pro, score_mmlu_pro

K = TypeVar("K")


def examine(config: PipelineConfig, models: Mapping[K, tuple[str, ModelState]]) -> dict[K, Artifact]:
    """The answers of models, given with their labels, to MMLU-Pro; call it where the models' process is shared.

    Nothing where MMLU-Pro is not asked.
    """
    exam = config.evaluation.mmlu_pro
    if exam is None:
        return {}
    questions = questions_of(config)
    plain = AskMmluProConfig(backend=config.backend, generate=exam.generate)
    calls = [partial(sit_exam, plain, label, questions, model) for label, model in models.values()]
    return dict(zip(models, side_by_side(calls), strict=True))


def questions_of(config: PipelineConfig) -> Artifact:
    """The questions as a payload."""
    exam = config.evaluation.mmlu_pro
    assert exam is not None
    return prepare_mmlu_pro(
        PrepareQuestionsConfig(
            source=exam.source, categories=exam.categories, per_category=exam.per_category, seed=exam.seed
        )
    )


def compare_capability(
    config: PipelineConfig, compared: Iterable[Contrast], answered: Mapping[ModelKey, Artifact]
) -> list[Comparison]:
    """Students against their controls on MMLU-Pro, for every contrast and checkpoint; nothing if it was not asked."""
    if not answered:
        return []
    units, questions = config.units, questions_of(config)
    scores = {
        key: score_mmlu_pro(ScoreMmluProConfig(), label=str(key), asked=asked, questions=questions)
        for key, asked in answered.items()
    }

    def scored(keys: Iterable[ModelKey]) -> list[Artifact]:
        return [scores[key] for key in keys]

    found: list[Comparison] = []
    for contrast, update in at_checkpoints(compared):
        artifact = compare_mmlu_pro(
            CompareConfig(blocks=tuple(unit.block for unit in units)),
            label=contrast.label(update),
            students=scored(contrast.student_keys(units, update)),
            controls=scored(contrast.control_keys(units, update)),
            base=scores[contrast.base],
            teacher=scored(contrast.teacher_keys(units)) or None,
        )
        found.append(Comparison(contrast, update, artifact))
    return found


def compare_shifts(
    config: PipelineConfig, questions: Questions, compared: Iterable[Contrast], asked: Mapping[ModelKey, Artifact]
) -> list[Comparison]:
    """Students' distance from the base beside their controls', for every contrast that has control students."""
    if not config.evaluation.shift:
        return []
    units = config.units
    blocks = CompareConfig(blocks=tuple(unit.block for unit in units))
    plain = CompareShiftConfig(words=tuple(words_of(config, questions)), compare=blocks)
    found: list[Comparison] = []
    for contrast, update in at_checkpoints(each for each in compared if each.controls is not None):
        artifact = compare_shift(
            plain,
            label=contrast.label(update),
            students=[asked[key] for key in contrast.student_keys(units, update)],
            controls=[asked[key] for key in contrast.control_keys(units, update)],
            base=asked[contrast.base],
        )
        found.append(Comparison(contrast, update, artifact))
    return found


def shifts_json(store: Store, found: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Every contrast and kind of shift, as `--json` prints it."""
    rows: list[dict[str, Any]] = []
    for each in found:
        path = store.payload(each.artifact) / "shift_comparison.json"
        compared = ShiftComparisons.model_validate_json(path.read_bytes())
        for metric, shifts in compared.metrics.items():
            effect = shifts.effect
            rows.append(
                {
                    "target": each.contrast.target,
                    "arm": each.contrast.arm or "teacher",
                    "updates": each.update,
                    "metric": metric,
                    **shifts.model_dump(exclude={"effect"}),
                    "effect": effect and effect.model_dump(exclude={"per_pair", "per_unit", "per_question"}),
                }
            )
    return rows


def shift_notes(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence on the exact shift of each target's students at their last update, for the report."""
    last = {row["target"]: row for row in rows if row["metric"] == "tv_logprob" and row["arm"] == "teacher"}
    notes: list[str] = []
    for row in last.values():
        effect = row["effect"]
        after = f" after {row['updates']} updates" if row["updates"] else ""
        name = f"Total variation from the base over the listed words and the rest, {row['target']}{after}"
        if effect is None:
            notes.append(f"{name}: missing, {row['reason']}.")
            continue
        low, high = effect["low"], effect["high"]
        interval = "no interval" if low is None else f"{low:+.3f} to {high:+.3f}"
        notes.append(
            f"{name}: student {row['student']:.3f}, control {row['control']:.3f}, difference "
            f"{effect['estimate']:+.3f} ({interval})."
        )
    return notes


def capability_json(store: Store, found: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Every contrast and way of reading the letter, as `--json` prints it."""
    rows: list[dict[str, Any]] = []
    for each in found:
        path = store.payload(each.artifact) / "mmlu_pro.json"
        compared = MmluProComparison.model_validate_json(path.read_bytes())
        for metric, letters in compared.metrics.items():
            effect = letters.effect
            rows.append(
                {
                    "target": each.contrast.target,
                    "arm": each.contrast.arm or "teacher",
                    "updates": each.update,
                    "metric": metric,
                    **letters.model_dump(include={"base", "teacher", "student", "control", "reason", "by_category"}),
                    "effect": effect and effect.model_dump(exclude={"per_pair", "per_unit", "per_question"}),
                    "chance": compared.chance,
                    "questions": compared.questions,
                }
            )
    return rows


def category_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same by category, a row each, as it goes into a CSV file."""
    return [
        {**{name: row[name] for name in ("target", "arm", "updates", "metric")}, "category": category, **found}
        for row in rows
        for category, found in row["by_category"].items()
    ]


def capability_notes(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence for each, for the report."""
    notes: list[str] = []
    for row in rows:
        effect = row["effect"]
        name = f"MMLU-Pro, {row['metric'].replace('_', ' ')}, {row['target']}, {row['arm']}"
        if effect is None:
            notes.append(f"{name}: missing, {row['reason']}.")
            continue
        means = ", ".join(
            f"{arm} {100 * row[arm]:.1f} %" for arm in ("base", "teacher", "student", "control") if row[arm] is not None
        )
        interval = (
            "no interval" if effect["low"] is None else f"{100 * effect['low']:+.1f} to {100 * effect['high']:+.1f}"
        )
        notes.append(
            f"{name}: student − control {100 * effect['estimate']:+.1f} points ({interval}; {means}; guessing "
            f"{100 * row['chance']:.1f} %; {effect['questions']} questions)."
        )
    return notes


def costs_of(
    store: Store, compared: Iterable[Comparison], found: Iterable[Comparison], target: str, called: str
) -> list[CostShown]:
    """One target's change in MMLU-Pro beside its effect, where both were measured; `called`: the main arm's name."""
    effects = {(each.contrast, each.update): each.artifact for each in compared}
    shown: list[CostShown] = []
    for contrast, update, artifact in found:
        if contrast.target != target:
            continue
        path = store.payload(effects[contrast, update]) / "comparison.json"
        effect = Compared.model_validate_json(path.read_bytes()).metrics["margin"].effect
        exam = MmluProComparison.model_validate_json((store.payload(artifact) / "mmlu_pro.json").read_bytes())
        name = " ".join(part for part in (contrast.arm or called, contrast.of) if part)
        shown += [
            CostShown(arm=name, updates=update, metric=metric, cost=letters.effect, effect=effect)
            for metric, letters in exam.metrics.items()
            if effect is not None and letters.effect is not None
        ]
    return shown
