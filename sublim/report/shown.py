"""The content of the pipeline's report. The flow fills it; it is shown as HTML, JSON, Markdown and table rows."""

from typing import Any

from pydantic import Field

from sublim.core.config import Config
from sublim.evals.effect_config import Effect
from sublim.evals.mmlu_pro.config import LetterMetric
from sublim.evals.preference.config import Comparison, MetricComparison, MetricName
from sublim.evals.specificity.config import Specificity
from sublim.report.carrier import CarrierShown
from sublim.report.diagnostics import DiagnosticsShown
from sublim.report.tested import EquivalenceShown, RunTests


class StageShown(Config):
    """One stage of the run."""

    stage: str
    label: str = ""
    """Tells calls of the same stage apart, such as `owl seed 1`."""
    state: str
    """Cached, Completed or Failed."""
    seconds: float
    key: str
    """The stage's key, 64 hex digits."""
    content: str | None = None
    """SHA-256 of its payload; None when it failed."""


class Edge(Config):
    """An output of one stage that another stage read."""

    source: str
    """Key of the stage that wrote it."""
    target: str
    """Key of the stage that read it."""
    name: str
    """The reader's name for it: base, data, weights."""


class RowShown(Config):
    """A row of a dataset."""

    prompt: str
    answer: str
    system: str | None = None


class DatasetShown(Config):
    """A dataset: whose rows it holds, how many the filter refused, and the first few."""

    name: str
    """Who wrote the rows: `owl teacher`, `control`."""
    answers: int
    """Number of answers written."""
    valid: int
    """Number of answers that passed the filter."""
    kept: int
    """Number of rows that students are trained on."""
    rejected: dict[str, int] = Field(default_factory=dict[str, int])
    """Number of refused answers by reason."""
    rows: list[RowShown] = Field(default_factory=list[RowShown])
    """The first rows."""


class DosePoint(Config):
    """The comparison at one checkpoint of the students."""

    updates: int
    metrics: dict[MetricName, MetricComparison]


class Change(Config):
    """An arm's effect minus the main arm's effect after equally many updates, paired by unit."""

    estimate: float
    low: float | None
    """Lower bound of the paired t interval over the units; None with a single unit."""
    high: float | None
    reason: str | None = None
    """Why there is no interval."""


class ArmShown(Config):
    """One arm of the study for one target."""

    name: str
    """The arm's name, followed by the other target where that one's teacher wrote the rows."""
    about: str = ""
    """What its students and controls are."""
    expected: str
    """The expectation stated beforehand: positive, weaker, nothing or either."""
    why: str = ""
    """Why that was expected."""
    updates: int | None = None
    """Number of updates of the students; None for their last."""
    metrics: dict[MetricName, MetricComparison] | None = None
    """None where the arm was not run."""
    unreadable: MetricComparison | None = None
    """The share of its answers that cannot be read; None where it was not run or not compared."""
    reason: str | None = None
    """Why it was not run."""
    dose: list[DosePoint] = Field(default_factory=list[DosePoint])
    """The same at several checkpoints."""
    change: Change | None = None
    """None for the main arm, and where the two arms cannot be paired."""
    bound: float | None = None
    """Declared share of the main arm's effect that counts as nothing; None where something is expected."""
    equivalence: EquivalenceShown | None = None
    """None unless nothing was expected and the arm was run."""
    same_base: bool | None = None
    """Whether the students start from the same weights as the teacher; None where the arm was not run."""

    @property
    def margin(self) -> MetricComparison | None:
        return None if self.metrics is None else self.metrics["margin"]


class ConfusionCell(Config):
    """The effect on one target of the students that were trained on one teacher's rows."""

    students: str
    target: str
    effect: Effect | None
    reason: str | None = None


class CostShown(Config):
    """What one arm's students lost in MMLU-Pro, beside their effect on the target."""

    arm: str
    updates: int | None
    metric: LetterMetric
    cost: Effect
    """Change in the share of questions answered correctly, student minus control."""
    effect: Effect


class TargetShown(Config):
    """Everything about one target."""

    comparison: Comparison
    arm: str = "teacher"
    """The main arm: who wrote the students' rows."""
    dose: list[DosePoint] = Field(default_factory=list[DosePoint])
    """The comparison at several checkpoints, where they were evaluated."""
    arms: list[ArmShown] = Field(default_factory=list[ArmShown])
    """All arms, the main arm first; empty where no other arm was asked for."""
    costs: list[CostShown] = Field(default_factory=list[CostShown])
    """The cost of every arm and checkpoint whose models answered MMLU-Pro."""

    @property
    def target(self) -> str:
        return self.comparison.target


class SpecificShown(Config):
    """The students of all teachers beside each other, at one checkpoint."""

    updates: int | None
    """Number of updates of the students; None for their last."""
    against: tuple[str, ...] = ()
    """The comparison targets: those that have a teacher but no section of their own."""
    found: Specificity


class RunReport(Config):
    """One run of a flow."""

    title: str
    question: str
    """The question that the run answers, in one sentence."""
    flow: str
    preset: str
    about: str = ""
    """One line on the settings."""
    targets: list[TargetShown]
    specific: list[SpecificShown] = Field(default_factory=list[SpecificShown])
    """The specific effects at every checkpoint, in the order of updates; empty where only one target has a teacher."""
    confusion: list[ConfusionCell] = Field(default_factory=list[ConfusionCell])
    """The effect of every teacher's students on every target, where there are several targets."""
    bases: dict[str, str] = Field(default_factory=dict[str, str])
    """SHA-256 of the weights that the teachers, the students and the students of the arm other_base start from."""
    tests: RunTests | None = None
    """None where nothing could be tested."""
    diagnostics: DiagnosticsShown | None = None
    """None where no diagnostics were asked for."""
    contexts: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    """The text around the user's words (`sublim.chats.chat.Context`) by its reader: teacher, student, asked student."""
    mismatches: list[str] = Field(default_factory=list[str])
    """How the contexts of training and evaluation differ, one sentence each."""
    datasets: list[DatasetShown] = Field(default_factory=list[DatasetShown])
    carrier: list[CarrierShown] = Field(default_factory=list[CarrierShown])
    """What every writer's lists really are; empty where that was not examined."""
    stages: list[StageShown] = Field(default_factory=list[StageShown])
    edges: list[Edge] = Field(default_factory=list[Edge])
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """The complete settings of the run."""
    provenance: dict[str, str] = Field(default_factory=dict[str, str])
    """Versions of the code and its packages, and the device."""
    notes: list[str] = Field(default_factory=list[str])
    """Remarks that the report shows at its top."""
    seconds: float = 0.0
