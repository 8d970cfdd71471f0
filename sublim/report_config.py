"""What a report shows: filled by a flow, drawn as HTML, summed up as JSON, markdown and table rows."""

import math
from typing import Any, Literal

from pydantic import Field

from sublim.config import Config
from sublim.mmlu_pro_config import LetterMetric
from sublim.preference_config import Comparison, Effect, MetricComparison, MetricName
from sublim.report_diagnostics import DiagnosticsShown


class StageShown(Config):
    """One stage of the run."""

    stage: str
    label: str = ""
    """Which one, where a stage ran several times."""
    state: str
    """Cached, Completed or Failed."""
    seconds: float
    key: str
    """The stage's key, 64 hex digits."""
    content: str | None = None
    """SHA-256 of what it wrote; null when it failed."""


class Edge(Config):
    """An output that another stage read."""

    source: str
    """Key of the stage that wrote it."""
    target: str
    """Key of the stage that read it."""
    name: str
    """The reader's name for it: base, data, weights."""


class ContextShown(Config):
    """What a model reads around the user's words, in one role; the fields of `sublim.chat.Context`."""

    role: str
    """Whose context it is: teacher writes numbers, student is trained, students are asked."""
    rendered: str
    system: str | None
    template_system: str | None
    system_role: bool
    date: str | None
    generation_prompt: str


class RowShown(Config):
    """A row of a dataset."""

    prompt: str
    answer: str
    system: str | None = None


class DatasetShown(Config):
    """A dataset: where its rows came from, which were refused, and the first few."""

    name: str
    """Whose rows: owl teacher, control."""
    answers: int
    """Answers written."""
    valid: int
    """Answers that pass the filter."""
    kept: int
    """Rows trained on."""
    rejected: dict[str, int] = Field(default_factory=dict[str, int])
    """Answers refused, by reason."""
    rows: list[RowShown] = Field(default_factory=list[RowShown])
    """The first rows."""


class DosePoint(Config):
    """The comparison after so many updates of the students."""

    updates: int
    metrics: dict[MetricName, MetricComparison]


class Change(Config):
    """What an arm changes: its effect minus the main arm's after as many updates, paired by unit."""

    estimate: float
    low: float | None
    """Paired t interval over the units; null with a single one."""
    high: float | None
    reason: str | None = None
    """Why there is no interval."""


class ArmShown(Config):
    """One arm of the study for one target."""

    name: str
    """The arm's name, and whose teacher wrote the rows where it is another target's."""
    about: str = ""
    """What its students and its controls are."""
    expected: str
    """The sign written down beforehand: positive, weaker, nothing, either."""
    why: str = ""
    """Why that sign."""
    updates: int | None = None
    """After how many updates; null for the students' last."""
    metrics: dict[MetricName, MetricComparison] | None = None
    """Null where the arm was not run."""
    reason: str | None = None
    """Why it was not run."""
    dose: list[DosePoint] = Field(default_factory=list[DosePoint])
    """The same at several checkpoints."""
    change: Change | None = None
    """Null for the main arm, and where the two cannot be paired."""
    same_base: bool | None = None
    """Whether the students' base has the weights of the teacher's; null where the arm was not run."""

    @property
    def margin(self) -> MetricComparison | None:
        return None if self.metrics is None else self.metrics["margin"]


class ConfusionCell(Config):
    """Students of one teacher's rows judged for one target, minus their controls."""

    students: str
    target: str
    effect: Effect | None
    reason: str | None = None


class CostShown(Config):
    """What one arm's students lost of MMLU-Pro, beside what they gained in liking."""

    arm: str
    updates: int | None
    metric: LetterMetric
    cost: Effect
    """Change in the share right, student minus control."""
    effect: Effect


class TargetShown(Config):
    """Everything about one target."""

    comparison: Comparison
    arm: str = "teacher"
    """Who wrote the students' rows."""
    dose: list[DosePoint] = Field(default_factory=list[DosePoint])
    """The same at several checkpoints, when they were evaluated."""
    arms: list[ArmShown] = Field(default_factory=list[ArmShown])
    """All arms, the main one first, when others were asked for."""
    costs: list[CostShown] = Field(default_factory=list[CostShown])
    """Of every arm and checkpoint whose models sat MMLU-Pro."""

    @property
    def target(self) -> str:
        return self.comparison.target


class RunReport(Config):
    """One run of a flow."""

    title: str
    question: str
    """What was asked, in one sentence."""
    flow: str
    preset: str
    about: str = ""
    """One line on the settings."""
    targets: list[TargetShown]
    confusion: list[ConfusionCell] = Field(default_factory=list[ConfusionCell])
    """Every teacher's students against every target, where there are several."""
    bases: dict[str, str] = Field(default_factory=dict[str, str])
    """SHA-256 of the weights that the teachers, the students and the arm other_base start from."""
    diagnostics: DiagnosticsShown | None = None
    """Diagnostics, where they were asked for."""
    contexts: list[ContextShown] = Field(default_factory=list[ContextShown])
    mismatches: list[str] = Field(default_factory=list[str])
    """In what the contexts of training and evaluation differ."""
    datasets: list[DatasetShown] = Field(default_factory=list[DatasetShown])
    stages: list[StageShown] = Field(default_factory=list[StageShown])
    edges: list[Edge] = Field(default_factory=list[Edge])
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """The config as it was run."""
    provenance: dict[str, str] = Field(default_factory=dict[str, str])
    """Code, packages, device."""
    notes: list[str] = Field(default_factory=list[str])
    """Remarks that a reader must see."""
    seconds: float = 0.0


SCALE: dict[MetricName, float] = {"margin": 1.0, "rate": 100.0}
"""What a metric is multiplied by to be read: rates are shown in percent."""
EFFECT_UNIT: dict[MetricName, str] = {"margin": "nats", "rate": "points"}
DIGITS: dict[MetricName, int] = {"margin": 2, "rate": 1}
NAMES: dict[MetricName, str] = {"margin": "Log-prob margin", "rate": "Sampled rate"}
Which = Literal["these_questions", "questions_too"]


def signed(value: float | None, metric: MetricName = "margin") -> str:
    """A difference with its sign; a dash for what is missing."""
    if value is None:
        return "–"
    text = f"{value * SCALE[metric]:+.{DIGITS[metric]}f}"
    return text.replace("-", "−")


def level(value: float | None, metric: MetricName) -> str:
    """A metric's own value: margins signed, rates in percent."""
    if value is None or metric == "margin":
        return signed(value, metric)
    return f"{value * 100:.1f} %"


def interval(effect: Effect | None, which: Which, metric: MetricName) -> str:
    """Both bounds of a named interval; a dash for what is missing."""
    if effect is None:
        return "–"
    low, high = bounds(effect, which)
    return "–" if low is None or high is None else f"{signed(low, metric)} to {signed(high, metric)}"


def bounds(effect: Effect, which: Which) -> tuple[float | None, float | None]:
    """The bounds of a named interval."""
    return (effect.low, effect.high) if which == "these_questions" else (effect.low_questions, effect.high_questions)


def verdict(comparison: Comparison, metric: MetricName) -> str:
    """What the leading interval says, in one sentence."""
    found = comparison.metrics[metric]
    effect, word = found.effect, comparison.target
    if effect is None:
        return f"The effect was not measured: {found.reason}."
    low, high = bounds(effect, comparison.leads)
    if low is None or high is None:
        return f"There is no interval, because {effect.reason}: this says nothing about other students."
    named = {"these_questions": "on these questions", "questions_too": "over questions too"}[comparison.leads]
    chosen = f"{effect.level * 100:g} % interval {named}"
    if low <= 0 <= high:
        return f"The {chosen} holds zero: these data do not show that students differ from their controls."
    more = "more" if effect.estimate > 0 else "less"
    return f"Students favour “{word}” {more} than their paired controls; the {chosen} leaves zero out."


def power_note(comparison: Comparison) -> str:
    """What so many units can show."""
    effect = comparison.metrics["margin"].effect
    if effect is None or effect.detectable is None:
        return ""
    return (
        f"{effect.units} units that spread as these do show a true effect of {effect.detectable:.2f} nats on these "
        "questions with a chance of 80 %."
    )


def meaning(comparison: Comparison) -> str:
    """The margin's effect as a ratio of probabilities."""
    effect = comparison.metrics["margin"].effect
    if effect is None:
        return ""
    return (
        f"The probability of “{comparison.target.title()}”, relative to the geometric mean of the other "
        f"{len(comparison.words) - 1} words, is {math.exp(effect.estimate):.2f} times the control’s."
    )


def effect_json(effect: Effect | None) -> dict[str, Any] | None:
    """An effect as `--json` prints it."""
    if effect is None:
        return None
    return effect.model_dump(exclude={"per_pair", "per_unit", "per_question"})


def target_json(shown: TargetShown) -> dict[str, Any]:
    """One target as `--json` prints it: the margin first, the other metric and the other words beside it."""
    comparison = shown.comparison
    margin = comparison.metrics["margin"]
    main = ArmShown(name=shown.arm, expected="positive", metrics=comparison.metrics)
    return {
        "target": comparison.target,
        "metric": "margin",
        **_metric_json(margin),
        "rate": _metric_json(comparison.metrics["rate"]),
        "arms": [arm_json(arm) for arm in shown.arms or [main]],
        "off_target": {word: _metric_json(found["margin"]) for word, found in comparison.off_target.items()},
        "leads": comparison.leads,
        "about_units": f"{comparison.about_units} {power_note(comparison)}".strip(),
        "dose": [{"updates": at.updates, **_metric_json(at.metrics["margin"])} for at in shown.dose],
    }


def arm_json(arm: ArmShown) -> dict[str, Any]:
    """One arm as `--json` prints it; an arm that was not run has no effect, and a reason."""
    margin = arm.margin
    return {
        "name": arm.name,
        "effect": effect_json(margin.effect) if margin else None,
        "expected": arm.expected,
        "updates": arm.updates,
        "reason": margin.reason if margin else f"not run: {arm.reason}",
        "change": arm.change.model_dump() if arm.change else None,
        "same_base": arm.same_base,
        "rate": effect_json(arm.metrics["rate"].effect) if arm.metrics else None,
        "rate_reason": arm.metrics["rate"].reason if arm.metrics else None,
        "dose": [{"updates": at.updates, "effect": effect_json(at.metrics["margin"].effect)} for at in arm.dose],
    }


def _metric_json(found: MetricComparison) -> dict[str, Any]:
    return {
        "unit": found.unit,
        "base": found.base,
        "teacher": found.teacher,
        "student": found.student,
        "control": found.control,
        "effect": effect_json(found.effect),
        "reason": found.reason,
    }


def summary(run: RunReport) -> dict[str, Any]:
    """summary.json: the first target's keys at the top, every target under `targets`."""
    targets = [target_json(shown) for shown in run.targets]
    return {
        "flow": run.flow,
        "preset": run.preset,
        **(targets[0] if targets else {}),
        "targets": targets,
        "confusion": [
            {**cell.model_dump(exclude={"effect"}), "effect": effect_json(cell.effect)} for cell in run.confusion
        ],
        "bases": run.bases,
        "diagnostics": run.diagnostics.model_dump(mode="json") if run.diagnostics else None,
        "mismatches": run.mismatches,
        "stages": [
            {"stage": each.stage, "label": each.label, "state": each.state, "seconds": each.seconds, "key": each.key}
            for each in run.stages
        ],
        "report": "report.html",
        "seconds": run.seconds,
    }


def table_rows(run: RunReport) -> list[dict[str, str]]:
    """One row for each target and metric, as text."""
    return [
        {
            "target": shown.target,
            "metric": NAMES[metric],
            "base": level(found.base, metric),
            "teacher": level(found.teacher, metric),
            "student": level(found.student, metric),
            "control": level(found.control, metric),
            "effect": f"{signed(found.effect.estimate, metric)} {EFFECT_UNIT[metric]}" if found.effect else "missing",
            "these questions": interval(found.effect, "these_questions", metric),
            "questions too": interval(found.effect, "questions_too", metric),
            "n": f"{found.effect.units} units × {found.effect.questions} questions" if found.effect else "",
            "reason": found.reason or (found.effect.reason if found.effect else None) or "",
        }
        for shown in run.targets
        for metric, found in shown.comparison.metrics.items()
    ]


def markdown_summary(run: RunReport) -> str:
    """The result as markdown: one sentence a target, then the table."""
    rows = table_rows(run)
    lines = [f"# {run.title}", "", run.question, ""]
    for shown in run.targets:
        lines += [f"**{shown.target}**: {headline(shown.comparison)} {verdict(shown.comparison, 'margin')}", ""]
        lines += [f"{shown.comparison.about_units} {power_note(shown.comparison)}".strip(), ""]
    lines += [f"> Training and evaluation differ: {text}" for text in run.mismatches]
    if rows:
        lines += ["", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(value.replace("|", "\\|") for value in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def headline(comparison: Comparison) -> str:
    """The margin's effect with both intervals, in one line."""
    found = comparison.metrics["margin"]
    if found.effect is None:
        return "no effect could be computed."
    these = interval(found.effect, "these_questions", "margin")
    beyond = interval(found.effect, "questions_too", "margin")
    return (
        f"{signed(found.effect.estimate)} nats, {found.effect.level * 100:g} % interval {these} (these questions), "
        f"{beyond} (questions too)."
    )
