"""The shift of a model's answers away from another's: its config and what shift.json holds."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.config import Config
from sublim.preference_config import Metric

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
