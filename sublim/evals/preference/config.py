"""What is asked of a model about its likings, how answers are scored, and the shape of scores and comparisons."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sublim.core.config import Config, OmittedWhenUnset, RunOnly
from sublim.core.errors import UserError
from sublim.evals.effect_config import Effect
from sublim.inference.config import Backend, SamplingParams, scores_words
from sublim.residual.edits import Steering
from sublim.traits.words import comparison_list

MetricName = Literal["margin", "rate"]
METRICS: tuple[MetricName, ...] = ("margin", "rate")
UNITS: dict[MetricName, str] = {"margin": "nats", "rate": "share of readable answers"}


class AskConfig(Config):
    """Open questions to one model: the log-prob of every listed word as its answer, and answers it writes."""

    questions: Annotated[list[str], Field(min_length=1)]
    """The questions themselves, one user turn each."""
    words: list[str]
    """The comparison list, targets included; scored in title case."""
    system: str | None = None
    """System prompt while asking; null for what the chat template does by itself."""
    backend: Backend
    """What runs the model."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Written answers for each question; 0 leaves the sampled rate out."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """How answers are drawn; `n` is replaced by `samples`."""
    weights_update: int | None = None
    """Which checkpoint of the training payload to ask; null for its last."""
    steering: OmittedWhenUnset[Steering] = None
    """Edits of the residual stream while the model answers; their vectors are an input of the stage."""
    shard: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Questions answered between two saves: a crash loses no more than these. Nothing: 16, on a GPU all of them."""

    @field_validator("words")
    @classmethod
    def _listed(cls, words: list[str]) -> list[str]:
        return comparison_list([], words)

    @model_validator(mode="after")
    def _something_can_be_told(self) -> Self:
        if not self.samples and not scores_words(self.backend):
            raise UserError(
                "a chat server cannot score words: set samples for the sampled rate, or api to completions where the "
                "server runs the base itself (vLLM does)"
            )
        return self


class ScoreConfig(Config):
    """Which of the asked words is the target, and which it is compared with."""

    target: str
    """The word the teacher was made to like."""
    words: list[str]
    """The comparison list; the target is added when it is not there."""

    @field_validator("target")
    @classmethod
    def _plain(cls, target: str) -> str:
        return target.strip().casefold()

    @field_validator("words")
    @classmethod
    def _listed(cls, words: list[str], info: ValidationInfo) -> list[str]:
        return comparison_list([info.data["target"]], words)


class Metric(Config):
    """One metric of one model for one word."""

    mean: float | None
    """Over the questions that have a value; null when none has."""
    per_question: list[float | None]
    """In the order of the questions; null where it could not be computed."""
    reason: str | None = None
    """Why `mean` is missing."""


class Answers(Config):
    """What became of the written answers."""

    asked: int
    """All of them."""
    readable: int
    """Those that name a listed word or something else."""
    named: dict[str, int]
    """How many name each listed word."""
    other: int
    """How many are readable and name no listed word."""
    unread: dict[str, int]
    """Those that could not be read, by reason; never counted as "no"."""
    others: dict[str, int]
    """The most frequent of the other answers, lower case, without articles."""
    missing: Annotated[dict[str, int], Field(default_factory=dict, exclude_if=lambda reasons: not reasons)]
    """Those that a server did not give, by its most frequent reasons; left out when there are none."""


class Scores(Config):
    """scores.json: both metrics of one model, for the target and, as off-target, for every other listed word."""

    target: str
    words: list[str]
    questions: list[str]
    metrics: dict[MetricName, dict[str, Metric]]
    """By metric, then by word."""
    answers: Answers | None
    """Null when none were sampled."""


class MetricComparison(Config):
    """One metric for one word, across the models of a study."""

    unit: str
    base: float | None
    teacher: float | None
    student: float | None
    """Mean over the students, on the questions of the effect."""
    control: float | None
    students: list[float | None]
    controls: list[float | None]
    effect: Effect | None
    reason: str | None = None
    """Why the effect is missing; it is never shown as zero."""


class Comparison(Config):
    """comparison.json: the effect on the target, and on every other word beside it."""

    target: str
    words: list[str]
    questions: list[str]
    unit: Literal["block", "seed"]
    """What is drawn independently."""
    about_units: str
    """The same in a sentence, with what the intervals are conditional on."""
    leads: Literal["these_questions", "questions_too"]
    """The interval to quote: below six units the first."""
    metrics: dict[MetricName, MetricComparison]
    off_target: dict[str, dict[MetricName, MetricComparison]]
    answers: dict[Literal["base", "teacher", "student", "control"], Answers | None]
    """Counts behind the rates; students' and controls' are summed."""
