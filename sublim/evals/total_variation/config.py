"""The settings of the shift of a model's answers from a reference's, and the shape of the files that hold it."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.core.config import Config
from sublim.evals.effect_config import CompareConfig, Effect
from sublim.evals.preference.config import Metric

ShiftName = Literal["tv_logprob", "tv_list", "tv_sampled"]
SHIFTS: dict[ShiftName, str] = {
    "tv_logprob": "total variation over the listed words and all else together, from exact log-probs",
    "tv_list": "total variation among the listed words alone, from exact log-probs",
    "tv_sampled": "total variation over sampled answers: each listed word, other words, unreadable",
}


class ShiftConfig(Config):
    """Settings of the comparison between the answer distributions of two models."""

    words: Annotated[tuple[str, ...], Field(min_length=2)]
    """Listed words, all of which both models must have been asked."""
    relabelled: Annotated[int, Field(ge=20)] = 200
    """Number of random exchanges of the two models' answers for `floor` and `p`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the exchanges."""


class Shifts(Config):
    """Contents of shift.json: total variation distances (0 to 1) of one model's answers from a reference's."""

    questions: list[str]
    metrics: dict[ShiftName, Metric]
    """Distances by kind; `mean` is over the questions that have a value."""
    floor: float | None
    """Mean of tv_sampled if both models had the same distribution. It is above zero because few answers differ by
    chance."""
    p: float | None
    """Permutation p: share of random exchanges of answers that give a tv_sampled at least as large as the observed."""


class CompareShiftConfig(Config):
    """Settings of the effect on the shift of paired students and controls."""

    words: Annotated[tuple[str, ...], Field(min_length=2)]
    """Listed words."""
    compare: CompareConfig = CompareConfig()
    """Settings of blocks and intervals."""


class ShiftComparison(Config):
    """One kind of shift across the models of a study."""

    student: float | None
    """Mean distance of the students from the base, 0 to 1."""
    control: float | None
    """Mean distance of the controls from the base, 0 to 1."""
    between: float | None
    """Mean distance of a student from its paired control."""
    effect: Effect | None
    """Student's distance minus control's. Sampling noise raises both alike and so cancels in the difference."""
    reason: str | None = None


class ShiftComparisons(Config):
    """Contents of shift_comparison.json."""

    about_units: str
    metrics: dict[ShiftName, ShiftComparison]
