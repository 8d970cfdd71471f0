"""The shift of a model's answers away from another's: configs, and what shift.json and shift_comparison.json hold."""

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
    """How the distributions of two models' answers are set against each other."""

    words: Annotated[tuple[str, ...], Field(min_length=2)]
    """The listed words; both models must have been asked all of them."""
    relabelled: Annotated[int, Field(ge=20)] = 200
    """Random exchanges of the two models' answers behind `floor`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the exchanges."""


class Shifts(Config):
    """shift.json: total-variation distances (0 to 1) between one model's answers and a reference's."""

    questions: list[str]
    metrics: dict[ShiftName, Metric]
    """By kind; `mean` is over the questions that have a value."""
    floor: float | None
    """What tv_sampled would be on average if both models answered alike: few answers differ by chance."""
    p: float | None
    """How often a random exchange of answers gives a tv_sampled as large as the one found."""


class CompareShiftConfig(Config):
    """How shifts of paired students and controls become an effect."""

    words: Annotated[tuple[str, ...], Field(min_length=2)]
    """The listed words."""
    compare: CompareConfig = CompareConfig()
    """Blocks and intervals."""


class ShiftComparison(Config):
    """One kind of shift, across the models of a study."""

    student: float | None
    """Mean distance from the base, 0 to 1."""
    control: float | None
    between: float | None
    """Mean distance of a student from its own control."""
    effect: Effect | None
    """Student's distance minus control's: sampling noise lifts both alike, and leaves their difference alone."""
    reason: str | None = None


class ShiftComparisons(Config):
    """shift_comparison.json."""

    about_units: str
    metrics: dict[ShiftName, ShiftComparison]
