"""Planning: how many units (seeds or blocks) are needed to show an effect of a given size, from a pilot's variance.

A pilot is a matrix [units, questions] of paired differences. `spread_of` estimates the variances between units, between
questions and of single cells. `crossed_power` is the power of the interval over units and questions.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from scipy.optimize import brentq

from sublim.core.errors import UserError
from sublim.stats.intervals import FEW_UNITS, power, satterthwaite, two_sided_power, units_needed

MOST = 10_000


class Spread(NamedTuple):
    """Variance components of a paired difference: of units, of questions, and the residual of single cells."""

    unit: float
    question: float
    residual: float

    def of_unit(self, questions: int) -> float:
        """Standard deviation of a unit's mean over `questions` given questions."""
        return float(np.sqrt(self.unit + self.residual / questions))


def spread_of(matrix: Float[ndarray, "s q"]) -> Spread:
    """Two-way variance components of a pilot, each at least zero. UserError with fewer than two units or questions."""
    n, m = matrix.shape
    if min(n, m) < 2:
        raise UserError(f"a pilot of {n} units and {m} questions has no spread to plan with: give two or more of each")
    rows, columns = matrix.mean(axis=1), matrix.mean(axis=0)
    left = matrix - rows[:, None] - columns[None, :] + matrix.mean()
    residual = float((left**2).sum() / ((n - 1) * (m - 1)))
    unit = float(rows.var(ddof=1)) - residual / m
    question = float(columns.var(ddof=1)) - residual / n
    return Spread(max(unit, 0.0), max(question, 0.0), residual)


class Nested(NamedTuple):
    """Variance components of a pair's effect: between blocks, and between the seeds of one block."""

    block: float
    seed: float

    def of_block(self, seeds: int) -> float:
        """Standard deviation of the mean of one block with `seeds` seeds."""
        return float(np.sqrt(self.block + self.seed / seeds))


def nested_spread(effects: Sequence[float], blocks: Sequence[int]) -> Nested:
    """Variance components of a pilot with at least two blocks, each with the same number of seeds, at least two."""
    values, labels = np.asarray(effects, dtype=float), np.asarray(blocks)
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.min() < 2 or counts.min() < counts.max():
        raise UserError(
            "variances of blocks and seeds need two or more blocks with equally many seeds, at least two each"
        )
    table = np.stack([values[labels == name] for name in names])
    within = float(table.var(axis=1, ddof=1).mean())
    between = float(table.mean(axis=1).var(ddof=1)) - within / table.shape[1]
    return Nested(max(between, 0.0), within)


def crossed_power(spread: Spread, effect: float, units: int, questions: int, level: float = 0.95) -> float:
    """Power of the interval over units and questions: the probability that it excludes zero if the mean is `effect`.

    The degrees of freedom are those of Satterthwaite (1946), as in `intervals.crossed_components`, at the expectations
    of the mean squares. Below `FEW_UNITS` units the interval is no narrower than the paired t, and so its power is no
    greater: the smaller of both is given, which is an upper bound.
    """
    within = spread.residual / (units * questions)
    by_unit, by_question = spread.unit / units + within, spread.question / questions + within
    variance = by_unit + by_question - within
    if variance <= 0:
        raise UserError("power needs a spread above zero: the pilot's differences are all alike")
    df = satterthwaite(by_unit, by_question, within, units, questions)
    found = two_sided_power(df, effect / float(np.sqrt(variance)), level)
    sd = spread.of_unit(questions)
    return min(found, power(units, effect, sd, level)) if units < FEW_UNITS and sd > 0 else found


UPPER = 0.8
"""Confidence of the upper limit of a pilot's spread, with which studies are planned."""


def upper_variance(variance: float, df: float) -> float:
    """The upper 80 % confidence limit of a variance that was estimated with `df` degrees of freedom.

    It is variance * df / q, with q the .2 quantile of chi-square: 80 % of such limits lie above the true variance. That
    holds for normal values; with a long tail the limit is too low.
    """
    return float(variance * df / stats.chi2.ppf(1 - UPPER, df))


def upper_spread(matrix: Float[ndarray, "s q"]) -> Spread:
    """The components of `spread_of`, with the mean squares of units and of questions at their upper 80 % limits."""
    n, m = matrix.shape
    residual = spread_of(matrix).residual
    by_unit = upper_variance(float(matrix.mean(axis=1).var(ddof=1)), n - 1)
    by_question = upper_variance(float(matrix.mean(axis=0).var(ddof=1)), m - 1)
    return Spread(max(by_unit - residual / m, 0.0), max(by_question - residual / n, 0.0), residual)


class Plan(NamedTuple):
    """How many units an effect needs, given a spread."""

    these_questions: int
    """Units with which the paired t interval excludes zero with the wanted power."""
    questions_too: int | None
    """The same for the interval over units and questions; None if no number of units is enough, or without a pilot."""
    sign_flips: int
    """Smallest number of units with which a sign-flip test can reach a p of 1 - level."""


def plan_units(
    effect: float,
    sd: float,
    *,
    spread: Spread | None = None,
    questions: int | None = None,
    wanted: float = 0.8,
    level: float = 0.95,
) -> Plan:
    """Units needed for `effect`, given one unit's standard deviation `sd` and, if there is a pilot, its components.

    A pilot of few units may have little spread by chance: give the square root of `upper_variance`, and `upper_spread`.
    """
    least = int(np.ceil(np.log2(2 / (1 - level)) - 1e-9))
    needed = units_needed(effect, sd, wanted=wanted, level=level, most=MOST)
    too = _crossed_units(spread, effect, questions, wanted, level) if spread and questions else None
    return Plan(needed, too, least)


def _crossed_units(spread: Spread, effect: float, questions: int, wanted: float, level: float) -> int | None:
    units = 2
    while units <= MOST:  # the variance between questions may make the power too low for any number of units
        if crossed_power(spread, effect, units, questions, level) >= wanted:
            return units
        units += max(1, units // 20)
    return None


def detectable(units: int, sd: float, *, wanted: float = 0.8, level: float = 0.95) -> float | None:
    """The smallest effect that `units` units show with power `wanted`; None with fewer than two units or no spread."""
    return None if units < 2 or sd <= 0 else sd * _detectable(units, wanted, level)


@cache
def _detectable(units: int, wanted: float, level: float) -> float:
    """The same for a standard deviation of 1. Cached: it takes a tenth of a second and is needed for every word."""

    def lacking(size: float) -> float:
        return power(units, size, 1.0, level) - wanted

    highest = 1.0
    while lacking(highest) < 0:
        highest *= 2
    return cast(float, brentq(lacking, 0.0, highest, xtol=1e-9))
