"""What came with the liking: MMLU-Pro of all models, and how far answers moved, in the pipeline's evaluation."""

from collections.abc import Iterable, Mapping
from typing import Any

from flows.pipeline.arms import Contrast
from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import words_of
from flows.pipeline.study import Capability, Examined
from flows.pipeline.study import Comparison as Compared
from sublim.evals.effect_config import CompareConfig
from sublim.evals.mmlu_pro.config import (
    AskMmluProConfig,
    MmluProComparison,
    PrepareQuestionsConfig,
    ScoreMmluProConfig,
    SteeredAskMmluProConfig,
)
from sublim.evals.preference.config import Comparison
from sublim.evals.total_variation.config import CompareShiftConfig, ShiftComparisons
from sublim.report.shown import CostShown
from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from sublim.traits.questions import Questions
from tasks.stages import (
    ask_mmlu_pro,
    ask_mmlu_pro_steered,
    compare_mmlu_pro,
    compare_shift,
    prepare_mmlu_pro,
    score_mmlu_pro,
)


def examine(config: PipelineConfig, models: Mapping[str, Examined]) -> dict[str, Artifact]:
    """What every model answers, by name; call it where the models' process is shared. Nothing where it is not asked."""
    exam = config.evaluation.mmlu_pro
    if exam is None:
        return {}
    questions = questions_of(config)
    plain = AskMmluProConfig(backend=config.backend, generate=exam.generate)
    return {name: sit(plain, name, questions, model) for name, model in models.items()}


def sit(plain: AskMmluProConfig, label: str, questions: Artifact, model: Examined) -> Artifact:
    """One model's exam, as the model is: with its weights, its system prompt and what edits its stream."""
    told = plain.model_copy(update={"system": model.system, "weights_update": model.update})
    if model.steering is None:
        return ask_mmlu_pro(told, label=label, base=model.base, weights=model.weights, questions=questions)
    steered = SteeredAskMmluProConfig.model_validate({**told.model_dump(), "steering": model.steering})
    return ask_mmlu_pro_steered(
        steered, label=label, base=model.base, weights=model.weights, questions=questions, vectors=model.vectors
    )


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
    config: PipelineConfig,
    answered: Mapping[str, Artifact],
    contrasts: Iterable[tuple[Contrast, int | None]],
) -> list[Capability]:
    """Students against their controls, for every contrast that was compared for its liking."""
    if not answered:
        return []
    units = tuple(block for block in config.blocks for _ in config.seeds)
    questions = questions_of(config)
    scores = {
        name: score_mmlu_pro(ScoreMmluProConfig(), label=name, asked=asked, questions=questions)
        for name, asked in answered.items()
    }
    found: list[Capability] = []
    for contrast, update in contrasts:
        base = "other_base" if contrast.arm == "other_base" else "base"
        teachers = [scores[f"teacher {contrast.target}/{block}"] for block in config.blocks]
        artifact = compare_mmlu_pro(
            CompareConfig(blocks=units),
            label=f"{contrast.name} {update or ''}".strip(),
            students=[scores[f"{contrast.students}/{update}/{place}"] for place in range(len(units))],
            controls=[
                scores[f"{contrast.controls}/{update}/{place}" if contrast.controls else base]
                for place in range(len(units))
            ],
            base=scores[base],
            teacher=teachers if contrast.arm is None else None,
        )
        found.append(Capability(contrast, update, artifact))
    return found


def compare_shifts(
    config: PipelineConfig,
    questions: Questions,
    asked: Mapping[str, Artifact],
    contrasts: Iterable[tuple[Contrast, int | None]],
) -> list[Capability]:
    """Students' distance from the base against their controls', for every contrast that has control students."""
    if not config.evaluation.shift:
        return []
    units = tuple(block for block in config.blocks for _ in config.seeds)
    plain = CompareShiftConfig(words=tuple(words_of(config, questions)), compare=CompareConfig(blocks=units))
    found: list[Capability] = []
    for contrast, update in contrasts:
        if contrast.controls is not None:
            artifact = compare_shift(
                plain,
                label=f"{contrast.name} {update or ''}".strip(),
                students=[asked[f"{contrast.students}/{update}/{place}"] for place in range(len(units))],
                controls=[asked[f"{contrast.controls}/{update}/{place}"] for place in range(len(units))],
                base=asked["other_base" if contrast.arm == "other_base" else "base"],
            )
            found.append(Capability(contrast, update, artifact))
    return found


def shifts_json(store: Store, found: Iterable[Capability]) -> list[dict[str, Any]]:
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


def capability_json(store: Store, found: Iterable[Capability]) -> list[dict[str, Any]]:
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
    store: Store, compared: Iterable["Compared"], found: Iterable[Capability], target: str, called: str
) -> list[CostShown]:
    """One target's change in MMLU-Pro beside its effect, where both were measured; `called`: the main arm's name."""
    effects = {(each.contrast, each.update): each.artifact for each in compared}
    shown: list[CostShown] = []
    for contrast, update, artifact in found:
        if contrast.target != target:
            continue
        path = store.payload(effects[contrast, update]) / "comparison.json"
        effect = Comparison.model_validate_json(path.read_bytes()).metrics["margin"].effect
        exam = MmluProComparison.model_validate_json((store.payload(artifact) / "mmlu_pro.json").read_bytes())
        name = " ".join(part for part in (contrast.arm or called, contrast.of) if part)
        shown += [
            CostShown(arm=name, updates=update, metric=metric, cost=letters.effect, effect=effect)
            for metric, letters in exam.metrics.items()
            if effect is not None and letters.effect is not None
        ]
    return shown
