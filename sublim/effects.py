"""Effects: paired students and controls as a matrix of units by questions, with both named intervals."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sublim.errors import UserError
from sublim.planning import detectable
from sublim.preference_config import UNITS, CompareConfig, Effect, MetricComparison, MetricName, Scores
from sublim.stats import crossed_bootstrap, paired_t


class Units(NamedTuple):
    """Which pairs make up each independent unit."""

    kind: Literal["block", "seed"]
    members: list[list[int]]
    """Indices of the pairs of each unit."""
    sentence: str
    """What the units are and what an interval over them is conditional on."""


def units_of(students: int, controls: int, blocks: Sequence[int]) -> Units:
    """The units of so many pairs: blocks where there are several, otherwise the pairs of the one block."""
    if students != controls or not students:
        raise UserError(f"{students} students and {controls} controls do not pair: give one control for each student")
    if blocks and len(blocks) != students:
        raise UserError(f"`blocks` names {len(blocks)} blocks for {students} pairs: give one for each pair")
    distinct = list(dict.fromkeys(blocks))
    if len(distinct) > 1:
        members = [[pair for pair in range(students) if blocks[pair] == block] for block in distinct]
        text = f"The units are {len(distinct)} blocks, each with its own teacher and rows ({students} pairs in all)."
        return Units("block", members, text)
    pairs = "1 pair" if students == 1 else f"{students} pairs"
    text = (
        f"The units are {pairs} of student and control, one for each seed, within one block: "
        "the intervals are conditional on its one teacher and its rows."
    )
    return Units("seed", [[pair] for pair in range(students)], text)


def compare_word(
    study: Mapping[str, Sequence[Scores]], metric: MetricName, word: str, units: Units, config: CompareConfig
) -> MetricComparison:
    """One metric for one word across base, teacher, student and control, on the questions that all pairs answered."""
    values = {arm: _matrix(scores, metric, word) for arm, scores in study.items()}
    differences = values["student"] - values["control"]
    used = cast(Bool[ndarray, " q"], np.isfinite(differences).all(axis=0))
    shown = used if used.any() else np.ones_like(used)
    means = {arm: [_mean(row[shown]) for row in matrix] for arm, matrix in values.items()}
    overall = {arm: _mean(np.array([value for value in found if value is not None])) for arm, found in means.items()}
    effect = paired_effect(differences, used, units, config) if used.any() else None
    reason = None if effect else _missing(study, metric, word)
    return MetricComparison(
        unit=UNITS[metric],
        base=overall["base"],
        teacher=overall["teacher"],
        student=overall["student"],
        control=overall["control"],
        students=means["student"],
        controls=means["control"],
        effect=effect,
        reason=reason,
    )


def _matrix(scores: Sequence[Scores], metric: MetricName, word: str) -> Float[ndarray, "s q"]:
    """Models by questions, NaN where a metric is missing."""
    return np.array([each.metrics[metric][word].per_question for each in scores], dtype=float)


def _mean(values: Float[ndarray, " n"]) -> float | None:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else None


def _missing(study: Mapping[str, Sequence[Scores]], metric: MetricName, word: str) -> str:
    for arm in ("student", "control"):
        for number, scores in enumerate(study[arm], start=1):
            if reason := scores.metrics[metric][word].reason:
                return f"{arm} {number}: {reason}"
    return "no question has a value for every student and control"


def paired_effect(
    differences: Float[ndarray, "s q"], used: Bool[ndarray, " q"], units: Units, config: CompareConfig
) -> Effect:
    """The effect with both intervals, over the `used` questions; `differences` holds pairs by questions."""
    matrix = np.stack([differences[pairs][:, used].mean(axis=0) for pairs in units.members])
    n, m = matrix.shape
    # A sampled rate that is zero everywhere is not known to be zero: equal values give no interval, not a width of 0.
    means = matrix.mean(axis=1)
    alike = np.ptp(means) == 0
    these = None if n == 1 or alike else paired_t(means, config.level)
    crossed = min(n, m) > 1 and np.ptp(matrix) > 0
    rng = np.random.default_rng(config.seed)
    beyond = crossed_bootstrap(matrix, rng, draws=config.draws, level=config.level) if crossed else None
    per_question = np.full(len(used), np.nan)
    per_question[used] = matrix.mean(axis=0)
    return Effect(
        estimate=float(matrix.mean()),
        low=these.low if these else None,
        high=these.high if these else None,
        low_questions=beyond.low if beyond else None,
        high_questions=beyond.high if beyond else None,
        level=config.level,
        questions=m,
        seeds=len(differences),
        units=n,
        per_pair=differences[:, used].mean(axis=1).tolist(),
        per_unit=means.tolist(),
        per_question=[float(value) if np.isfinite(value) else None for value in per_question],
        detectable=_detectable(means, config.level) if these else None,
        reason=_no_spread(n, m, alike=bool(alike)),
    )


def _detectable(means: Float[ndarray, " s"], level: float) -> float | None:
    found = detectable(len(means), float(means.std(ddof=1)), level=level)
    return None if found is None else round(found, 6)  # a root found by steps: later digits are the machine's


def _no_spread(units: int, questions: int, *, alike: bool) -> str | None:
    if units == 1:
        return "one unit has no spread"
    if alike:
        return "all units have the same value"
    return "one question has no spread" if questions == 1 else None
