"""Settings and results of a steering sweep: one model is asked the same questions under many steerings."""

from typing import Annotated, Self

from pydantic import Field, field_validator

from sublim.core.config import Config
from sublim.inference.config import Backend, SamplingParams
from sublim.residual.edits import Steering
from sublim.traits.words import comparison_list


class SweepConfig(Config):
    """Asks questions under many steerings and without steering."""

    questions: Annotated[list[str], Field(min_length=1)]
    """The questions; each is one user turn."""
    words: list[str]
    """Comparison list. Its words are scored in title case."""
    system: str | None = None
    """System prompt of the questions; null for the chat template's default."""
    backend: Backend
    """Backend that runs the model."""
    points: tuple[Steering, ...]
    """The steerings, numbered from 1. Point 0 is the model without steering."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled answers for each question at each point, except at random controls; with 0 no rate is measured."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """Sampling parameters; `samples` replaces their `n`."""
    weights_update: int | None = None
    """Checkpoint of the trained weights, as the number of updates; null for the last one."""

    @field_validator("words")
    @classmethod
    def _listed(cls, words: list[str]) -> list[str]:
        return comparison_list([], words)


class CurveConfig(Config):
    """How the points of a sweep are compared."""

    target: str
    """The target word."""
    words: list[str]
    """Comparison list; the target is added if it is not in it."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""

    @field_validator("target")
    @classmethod
    def _plain(cls, target: str) -> str:
        return target.strip().casefold()

    def listed(self) -> Self:
        """This config with the target in the comparison list."""
        return self.model_copy(update={"words": comparison_list([self.target], self.words)})


class SteeredPoint(Config):
    """The result of one steering; point 0 is the model without steering."""

    point: int
    layers: list[int]
    """Layers that are edited; empty for the model without steering."""
    vectors: list[str]
    kind: str | None
    alpha: float
    scale: str
    position: str
    """Which tokens are changed."""
    control: bool
    """Whether the vectors are random controls."""
    margin: float | None
    """Margin of the target in nats, averaged over questions."""
    estimate: float | None
    """The margin minus that of the model without steering, averaged over questions."""
    low: float | None
    """Lower end of the interval of the difference: a paired t interval over questions, for this vector and model."""
    high: float | None
    rate: float | None
    """Rate: share of all answers asked that name the target, averaged over questions; null if there are none. An answer
    that cannot be read names none."""
    rate_low: float | None = None
    """Lower end of the interval of the rate; questions are the independent observations."""
    rate_high: float | None = None
    rate_readable: float | None = None
    """The same among readable answers, averaged over questions that have some. A vector that breaks the model changes
    which answers those are."""
    rate_reason: str | None = None
    """Why the rate is missing."""
    answers: int
    readable: int
    questions: int
    random_low: float | None = None
    """Smallest difference among the random vectors with the same layers, strength and position."""
    random_high: float | None = None
    """Largest difference among them."""
    random: int = 0
    """Number of these random vectors."""
    beyond_random: float | None = None
    """Permutation p-value: share of vectors that move the margin at least as far, among the random ones and this
    one."""
    mmlu_pro: float | None = None
    """MMLU-Pro accuracy: share of questions whose likeliest letter is right; null if none could be read."""
    mmlu_pro_low: float | None = None
    """Lower end of Wilson's interval over questions."""
    mmlu_pro_high: float | None = None
    mmlu_pro_read: int = 0
    """Number of MMLU-Pro questions with a likeliest letter."""
    mmlu_pro_reason: str | None = None
    """Why the accuracy is missing."""
    reason: str | None = None
    """Why the difference is missing."""


class Curve(Config):
    """The content of curve.json: all points of a sweep for one target."""

    target: str
    words: list[str]
    questions: int
    level: float
    points: list[SteeredPoint]
