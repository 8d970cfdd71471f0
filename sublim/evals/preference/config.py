"""The settings by which models are asked for their preferences and scored, and the shape of scores and comparisons."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.errors import UserError
from sublim.evals.asked_model import AskedModel
from sublim.evals.effect_config import Effect
from sublim.inference.config import SamplingParams, scores_words
from sublim.traits.words import comparison_list

Primary = Literal["margin", "rate"]
"""Metrics that may stand alone."""
MetricName = Literal["margin", "rate", "rate_readable"]
"""`margin`: log-prob of a word minus the mean of the other words'. `rate`: share of all answers asked that name the
word; an unreadable answer does not. `rate_readable`: share of the readable answers alone. Training changes how many
answers can be read, so `rate_readable` compares other answers of students than of controls, and stands beside `rate`,
never alone. A student may also gain in `rate` on every word alike, only because more of its answers can be read: the
unreadable share is compared too."""
METRICS: tuple[MetricName, ...] = ("margin", "rate", "rate_readable")
UNITS: dict[MetricName, str] = {
    "margin": "nats",
    "rate": "share of all answers asked",
    "rate_readable": "share of readable answers",
}
UNREADABLE = "share of all answers asked that cannot be read"
MISSING = "share of answers that a server failed to give"
ALL = "all"
"""The key of all reasons together."""


class AskConfig(AskedModel):
    """Settings of open questions to one model: the log-prob of every listed word as the answer, and sampled answers."""

    questions: Annotated[list[str], Field(min_length=1)]
    """Texts of the questions, each of which is one user turn."""
    words: list[str]
    """Listed words, including the targets. They are scored in title case."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Number of sampled answers to each question; 0: no sampled rate."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """Sampling parameters of the answers. `n` is replaced by `samples`."""
    shard: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Questions whose answers are sampled and saved together; an interruption loses at most these. Null: all of them on
    a GPU or a server, otherwise as many as give 64 answers."""

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
    """Settings of the score: the target, and the words with which it is compared."""

    target: str
    """Word that the teacher was made to prefer."""
    words: list[str]
    """Listed words. The target is added if it is not among them."""

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
    """Mean over the questions that have a value; null if none has."""
    per_question: list[float | None]
    """Values in the order of the questions; null if a value could not be computed."""
    reason: str | None = None
    """Reason why `mean` is missing."""


def metric_of(values: list[float | None], reason: str) -> Metric:
    """The metric with these values by question; `reason` says why its mean is missing where none is there."""
    known = [value for value in values if value is not None]
    mean = math.fsum(known) / len(known) if known else None
    return Metric(mean=mean, per_question=values, reason=None if known else reason)


class Answers(Config):
    """Counts of the sampled answers."""

    asked: int
    """All sampled answers, with those that a server failed to give."""
    readable: int
    """Answers that name a listed word or another word."""
    named: dict[str, int]
    """Number of answers that name each listed word."""
    other: int
    """Number of readable answers that name no listed word."""
    unread: dict[str, int]
    """Number of unreadable answers, by reason. They name no word, and are left out of `rate_readable` alone."""
    others: dict[str, int]
    """Most frequent other answers with their counts, in lower case and without articles."""
    missing: Annotated[dict[str, int], Field(default_factory=dict, exclude_if=lambda reasons: not reasons)]
    """Answers that a server failed to give, by its most frequent reasons; left out if there are none. They count as not
    asked and are left out of every share."""

    @property
    def given(self) -> int:
        """Number of answers that shares are of: all but those that a server failed to give."""
        return self.readable + sum(self.unread.values())

    @property
    def lost(self) -> int:
        """Number of answers that a server failed to give."""
        return self.asked - self.given


class Scores(Config):
    """Contents of scores.json: the metrics of one model, for the target and all other listed words."""

    target: str
    words: list[str]
    questions: list[str]
    metrics: dict[MetricName, dict[str, Metric]]
    """Values by metric and word."""
    unreadable: dict[str, Metric] = Field(default_factory=dict[str, Metric])
    """Share of all answers asked that cannot be read: for `all` reasons, then by reason (`sublim.traits.words.Unread`).
    Empty in scores of earlier versions, whose `rate` is over readable answers."""
    missing: Annotated[Metric | None, Field(exclude_if=lambda share: share is None)] = None
    """Share of answers that a server failed to give; left out if there are none."""
    answers: Answers | None
    """Counts of the sampled answers; null if none were sampled."""


class MetricComparison(Config):
    """One metric for one word across the models of a study."""

    unit: str
    base: float | None
    teacher: float | None
    student: float | None
    """Mean over the students on the questions of the effect."""
    control: float | None
    students: list[float | None]
    controls: list[float | None]
    effect: Effect | None
    reason: str | None = None
    """Reason why the effect is missing."""


class Comparison(Config):
    """Contents of comparison.json: the effect on the target and on every other listed word."""

    target: str
    words: list[str]
    questions: list[str]
    unit: Literal["block", "seed"]
    """Independent unit: blocks, or seeds within one block."""
    about_units: str
    """The same in a sentence, which also says on what the intervals are conditional."""
    leads: Literal["these_questions", "questions_too"]
    """Interval to quote: with fewer than six units that on these questions, otherwise that over questions too."""
    metrics: dict[MetricName, MetricComparison]
    off_target: dict[str, dict[MetricName, MetricComparison]]
    unreadable: dict[str, MetricComparison] = Field(default_factory=dict[str, MetricComparison])
    """The unreadable share of all answers asked: for `all` reasons, then by reason."""
    missing: MetricComparison | None = None
    """The share of answers that a server failed to give; null if there are none. They are left out of every share, and
    a question to which some student or control gave no answer at all is left out of the effects on rates. That is
    harmless only if failures have nothing to do with what would have been answered: an effect here is a warning."""
    answers: dict[Literal["base", "teacher", "student", "control"], Answers | None]
    """Counts of the sampled answers, summed over students and over controls."""
