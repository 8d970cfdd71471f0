"""A sweep: one model, loaded once, asked the same questions under many steerings."""

from typing import Annotated, Self

from pydantic import Field, field_validator

from sublim.core.config import Config
from sublim.inference.config import Backend, SamplingParams
from sublim.residual.edits import Steering
from sublim.traits.words import comparison_list


class SweepConfig(Config):
    """Questions under many steerings, and under none."""

    questions: Annotated[list[str], Field(min_length=1)]
    """The questions, one user turn each."""
    words: list[str]
    """The comparison list; scored in title case."""
    system: str | None = None
    """System prompt while asking."""
    backend: Backend
    """What runs the model."""
    points: tuple[Steering, ...]
    """The steerings; the unsteered model is asked first, as point 0, and these count from 1."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Written answers for each question at each point that is no random control; 0 leaves the sampled rate out."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """How answers are drawn; `n` is replaced by `samples`."""
    weights_update: int | None = None
    """Which checkpoint of the training payload to ask; null for its last."""

    @field_validator("words")
    @classmethod
    def _listed(cls, words: list[str]) -> list[str]:
        return comparison_list([], words)


class CurveConfig(Config):
    """What the points of a sweep are compared by."""

    target: str
    """The word."""
    words: list[str]
    """The comparison list; the target is added when it is not there."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of repetitions in which an interval covers the truth."""

    @field_validator("target")
    @classmethod
    def _plain(cls, target: str) -> str:
        return target.strip().casefold()

    def listed(self) -> Self:
        """The same with the target in the list."""
        return self.model_copy(update={"words": comparison_list([self.target], self.words)})


class SteeredPoint(Config):
    """One steering's result; point 0 is the unsteered model."""

    point: int
    layers: list[int]
    """Layers that are edited; empty for none."""
    vectors: list[str]
    kind: str | None
    alpha: float
    scale: str
    position: str
    """Which tokens are touched."""
    control: bool
    """Whether its vectors are random ones."""
    margin: float | None
    """Log-prob margin of the target, mean over questions."""
    estimate: float | None
    """Its difference from the unsteered model's, mean over questions."""
    low: float | None
    """Interval of the difference: paired t over questions, for this one vector and model."""
    high: float | None
    rate: float | None
    """Share of readable answers that name the target, each question's share counted alike; null when there are none."""
    rate_low: float | None = None
    """Interval of the rate over questions like these, each counted once."""
    rate_high: float | None = None
    rate_reason: str | None = None
    """Why the rate is missing."""
    answers: int
    readable: int
    questions: int
    random_low: float | None = None
    """Smallest difference among the random vectors of the same layers, strength and position."""
    random_high: float | None = None
    """Their largest."""
    random: int = 0
    """How many of them there are."""
    beyond_random: float | None = None
    """Share of the random vectors that move the margin at least as far, this one counted in: a permutation p."""
    mmlu_pro: float | None = None
    """Share of MMLU-Pro questions whose likeliest letter is right; null when none could be read."""
    mmlu_pro_low: float | None = None
    """Wilson's interval over the questions."""
    mmlu_pro_high: float | None = None
    mmlu_pro_read: int = 0
    """Questions it is of."""
    mmlu_pro_reason: str | None = None
    """Why it is missing."""
    reason: str | None = None
    """Why the difference is missing."""


class Curve(Config):
    """curve.json: every point of a sweep for one target."""

    target: str
    words: list[str]
    questions: int
    level: float
    points: list[SteeredPoint]
