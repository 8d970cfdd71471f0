"""The settings of an effect (student minus control) and the shape of the result."""

from typing import Annotated

from pydantic import Field

from sublim.core.config import Config


class CompareConfig(Config):
    """Settings of the effect of paired students and controls, and of its intervals."""

    blocks: tuple[int, ...] = ()
    """Block (one teacher with its own rows) of every pair; empty: all pairs belong to one block."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    draws: Annotated[int, Field(ge=100)] = 10_000
    """Number of resamples of the crossed bootstrap."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the resampling."""


class Effect(Config):
    """Student minus its paired control, over independent units and questions."""

    estimate: float
    low: float | None
    """Lower bound for the given questions, by a paired t interval over the units. Null with a single unit, and if all
    units have the same value."""
    high: float | None
    low_questions: float | None
    """Lower bound that also generalises to other questions of the same kind, by a crossed bootstrap of units and
    questions. With fewer than six units it is at least as far from the estimate as `low`."""
    high_questions: float | None
    level: float
    questions: int
    """Number of questions in the estimate: those with a value for every student and control."""
    seeds: int
    """Number of pairs of student and control."""
    units: int
    """Number of independent units: blocks, or the pairs of a single block."""
    per_pair: list[float]
    per_unit: list[float]
    per_question: list[float | None]
    """Mean over the units for every question; null for questions that were left out."""
    detectable: float | None = None
    """The smallest effect that a paired t test shows with power .8 over as many units with the same standard deviation;
    null without an interval."""
    reason: str | None = None
    """Reason why an interval is missing."""
    p: float | None = Field(default=None, exclude_if=lambda p: p is None)
    """Two-sided p of the paired t test over the units; of γ the one-sided p of its permutation test. Only effects that
    a report tests have it and the next two."""
    p_holm: float | None = Field(default=None, exclude_if=lambda p: p is None)
    """`p` corrected by Holm's method for all tests that the report shows."""
    comparisons: int | None = Field(default=None, exclude_if=lambda count: count is None)
    """How many tests those are."""
