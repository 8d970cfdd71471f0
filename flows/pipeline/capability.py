"""Side effects of training in a pipeline run, and what is said of them: MMLU-Pro, and how far answers moved."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from flows.pipeline.config import PipelineConfig
from flows.pipeline.models import ModelState, exam_of, sit_exam
from flows.pipeline.report_arms import Results
from flows.pipeline.study import Comparison, read
from sublim.evals.mmlu_pro.config import AskMmluProConfig, MmluProComparison
from sublim.evals.total_variation.config import ShiftComparisons
from sublim.report.shown import CostShown
from sublim.report.summary import effect_json
from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from tasks.lanes import side_by_side

K = TypeVar("K")


def examine(
    config: PipelineConfig, models: Mapping[K, tuple[str, ModelState]], questions: Artifact | None
) -> dict[K, Artifact]:
    """The answers of models, given with their labels, to MMLU-Pro; call it where the models' process is shared.

    Nothing where MMLU-Pro is not asked.
    """
    exam = config.evaluation.mmlu_pro
    if exam is None or questions is None:
        return {}
    plain = AskMmluProConfig(backend=config.backend, generate=exam.generate)
    calls = [partial(sit_exam, plain, label, questions, model) for label, model in models.values()]
    return dict(zip(models, side_by_side(calls), strict=True))


def questions_of(config: PipelineConfig) -> Artifact | None:
    """The questions of MMLU-Pro; None where it is not asked."""
    exam = config.evaluation.mmlu_pro
    return None if exam is None else exam_of(exam)


def shifts_json(store: Store, found: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Every contrast and kind of shift, as `--json` prints it."""
    return list(_metrics(store, found, ShiftComparisons, "shift_comparison.json"))


def capability_json(store: Store, found: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Every contrast and way of reading the letter, as `--json` prints it."""
    return list(_metrics(store, found, MmluProComparison, "mmlu_pro.json"))


def _metrics(
    store: Store, found: Iterable[Comparison], kind: type[ShiftComparisons | MmluProComparison], file: str
) -> Iterator[dict[str, Any]]:
    for each in found:
        compared = read(kind, store, each.artifact, file)
        for metric, across in compared.metrics.items():
            yield {
                "target": each.contrast.target,
                "arm": each.contrast.arm or "teacher",
                "updates": each.update,
                "metric": metric,
                **across.model_dump(exclude={"effect", "against_base"}),
                "effect": effect_json(across.effect),
                **compared.model_dump(exclude={"about_units", "metrics"}),
            }


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
        notes.append(
            f"{name}: student {row['student']:.3f}, control {row['control']:.3f}, difference "
            f"{effect['estimate']:+.3f} ({_bounds(effect, 3)})."
        )
    return notes


def _bounds(effect: Mapping[str, Any], digits: int, scale: float = 1) -> str:
    low, high = effect["low"], effect["high"]
    return "no interval" if low is None else f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}"


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
        notes.append(
            f"{name}: student − control {100 * effect['estimate']:+.1f} points ({_bounds(effect, 1, 100)}; {means}; "
            f"guessing {100 * row['chance']:.1f} %; {effect['questions']} questions)."
        )
    return notes


def costs_of(store: Store, results: Results, found: Iterable[Comparison], target: str, called: str) -> list[CostShown]:
    """One target's change in MMLU-Pro beside its effect, where both were measured; `called`: the main arm's name."""
    shown: list[CostShown] = []
    for contrast, update, artifact in found:
        if contrast.target != target:
            continue
        effect = results.of(target, contrast.arm, update, contrast.of)["margin"].effect
        exam = read(MmluProComparison, store, artifact, "mmlu_pro.json")
        name = " ".join(part for part in (contrast.arm or called, contrast.of) if part)
        shown += [
            CostShown(arm=name, updates=update, metric=metric, cost=letters.effect, effect=effect)
            for metric, letters in exam.metrics.items()
            if effect is not None and letters.effect is not None
        ]
    return shown
