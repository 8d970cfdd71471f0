"""How an effect is computed: over which units, at which level, and what the result holds."""

from typing import Annotated

from pydantic import Field

from sublim.core.config import Config


class CompareConfig(Config):
    """How paired students and controls become an effect with intervals."""

    blocks: tuple[int, ...] = ()
    """The block (its own teacher and rows) of each pair; empty: all pairs share one."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of repetitions in which an interval covers the truth."""
    draws: Annotated[int, Field(ge=100)] = 10_000
    """Resamples of the crossed bootstrap."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the resampling."""


class Effect(Config):
    """Student minus its paired control, over independent units and questions."""

    estimate: float
    low: float | None
    """Interval on these questions: paired t over the units; null with one unit and where all have one value."""
    high: float | None
    low_questions: float | None
    """Interval over questions like these too: crossed bootstrap of units and questions."""
    high_questions: float | None
    level: float
    questions: int
    """Questions in the estimate: those with a value for every student and control."""
    seeds: int
    """Pairs of student and control."""
    units: int
    """Independent units: blocks, or the pairs of a single block."""
    per_pair: list[float]
    per_unit: list[float]
    per_question: list[float | None]
    """Mean over the units; null for questions left out."""
    detectable: float | None = None
    """The smallest true effect that a paired t test over as many units shows with power .8, if units spread as these
    do; null without an interval."""
    reason: str | None = None
    """Why an interval is missing."""
