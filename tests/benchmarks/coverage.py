"""How often nominal 95 % intervals hold the truth, by simulation: paired t and crossed bootstrap, few units, skew.

    python -m tests.benchmarks.coverage --repetitions 4000

One line for each shape, world and number of units. Effects of units and of 50 questions and the residuals all have the
shape, with mean 0. "t": the paired t interval holds the mean on the questions that were drawn. "crossed": the crossed
interval, as it is used, holds the mean over all questions. "bare": the same without the rule for few units. "t for
all": the paired t interval holds the mean over all questions, which it does not claim. "low" and "high" are the shares
of crossed intervals that lie wholly below and above the truth: with skew, nearly all misses are on one side.
"""

import argparse
from typing import Final, NamedTuple
from unittest.mock import patch

import numpy as np

from sublim.stats import intervals
from sublim.stats.intervals import Interval, crossed_bootstrap, paired_t

SHAPES: Final = ("normal", "exponential", "lognormal")
WORLDS: Final = {"units": (1.0, 0.3, 0.5), "mixed": (1.0, 1.0, 1.0), "questions": (0.1, 0.4, 0.4)}
"""Standard deviations of units, questions and residual; the last are near those of quickstart's students."""
UNITS: Final = (2, 3, 4, 6, 10)
QUESTIONS = 50


class Coverage(NamedTuple):
    """Shares of repetitions."""

    t: float
    crossed: float
    bare: float
    t_for_all: float
    low: float
    high: float


def drawn(rng: np.random.Generator, shape: str, size: tuple[int, int]) -> np.ndarray:
    """Draws with mean 0 and variance 1."""
    if shape == "exponential":
        return rng.exponential(size=size) - 1
    if shape == "lognormal":
        return (rng.lognormal(size=size) - np.exp(0.5)) / np.sqrt(np.e * (np.e - 1))
    return rng.normal(size=size)


def study(rng: np.random.Generator, shape: str, world: str, units: int) -> tuple[np.ndarray, float]:
    """A matrix [units, questions] whose mean over all questions is 0, and its true mean on its own questions."""
    by_unit, by_question, residual = WORLDS[world]
    column = by_question * drawn(rng, shape, (1, QUESTIONS))
    rows = by_unit * drawn(rng, shape, (units, 1)) + residual * drawn(rng, shape, (units, QUESTIONS))
    return rows + column, float(column.mean())


def coverage(shape: str, world: str, units: int, *, repetitions: int, draws: int, seed: int = 0) -> Coverage:
    """How often the intervals of simulated studies hold the truth."""
    rng = np.random.default_rng(seed)
    found: list[tuple[bool, ...]] = []
    for repetition in range(repetitions):
        matrix, truth = study(rng, shape, world, units)
        t = paired_t(matrix.mean(axis=1))
        crossed = crossed_bootstrap(matrix, np.random.default_rng(repetition), draws=draws)
        bare = crossed
        if units < intervals.FEW_UNITS:
            with patch.object(intervals, "FEW_UNITS", 0):
                bare = crossed_bootstrap(matrix, np.random.default_rng(repetition), draws=draws)
        held = (holds(t, truth), holds(crossed, 0), holds(bare, 0), holds(t, 0))
        found.append((*held, crossed.high < 0, crossed.low > 0))
    return Coverage(*np.mean(found, axis=0).tolist())


def holds(interval: Interval, truth: float) -> bool:
    """Whether the truth lies inside."""
    return interval.low <= truth <= interval.high


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    print(f"{given.repetitions} repetitions, {given.draws} draws, {QUESTIONS} questions")
    print(f"{'shape':12} {'world':10} units  t     crossed bare  t for all  low   high")
    for shape in SHAPES:
        for world in WORLDS:
            for units in UNITS:
                c = coverage(shape, world, units, repetitions=given.repetitions, draws=given.draws)
                numbers = f"{c.t:.3f} {c.crossed:.3f}   {c.bare:.3f} {c.t_for_all:.3f}      {c.low:.3f} {c.high:.3f}"
                print(f"{shape:12} {world:10} {units:5}  {numbers}", flush=True)


if __name__ == "__main__":
    main()
