"""What a report shows: filled by a flow, drawn as HTML, summed up as JSON, markdown and table rows."""

from typing import Any

from pydantic import Field

from sublim.core.config import Config
from sublim.evals.effect_config import Effect
from sublim.evals.mmlu_pro.config import LetterMetric
from sublim.evals.preference.config import Comparison, MetricComparison, MetricName
from sublim.report.diagnostics import DiagnosticsShown


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
    """What a model reads around the user's words, in one role; the fields of `sublim.chats.chat.Context`."""

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
