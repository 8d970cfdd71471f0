"""Effects: paired students and controls as a matrix of units by questions, with two intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig, Effect
from sublim.stats.intervals import crossed_bootstrap, paired_t
from sublim.stats.power import detectable

Arm = Literal["base", "teacher", "student", "control"]
Scored = TypeVar("Scored", bound=Config)


class Units(NamedTuple):
    """The independent units, each of which consists of one or more pairs."""

    kind: Literal["block", "seed"]
    members: list[list[int]]
    """Indices of the pairs of each unit."""
    sentence: str
    """Statement of what the units are and on what an interval over them is conditional."""


def units_of(students: int, controls: int, blocks: Sequence[int]) -> Units:
    """The units: blocks if there are several, otherwise the pairs of the one block.

    Raises UserError if students and controls do not pair, or `blocks` is neither empty nor names a block for each pair.
    """
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


def paired_effect(
    differences: Float[ndarray, "s q"], used: Bool[ndarray, " q"], units: Units, config: CompareConfig
) -> Effect:
    """The effect with both intervals, over the `used` questions, from the differences of all pairs."""
    matrix = np.stack([differences[pairs][:, used].mean(axis=0) for pairs in units.members])
    n, m = matrix.shape
    # Equal values, such as sampled rates of zero, give no interval: one of width 0 would claim certainty.
    means = matrix.mean(axis=1)
    alike = np.ptp(means) == 0
    these = None if n == 1 or alike else paired_t(means, config.level)
    least = detectable(n, float(means.std(ddof=1)), level=config.level) if these else None
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
        detectable=round(least, 6) if least is not None else None,  # further digits depend on the machine
        reason=_no_spread(n, m, alike=bool(alike)),
    )


def read_study(
    kind: type[Scored], base: Path, teachers: Sequence[Path], students: Sequence[Path], controls: Sequence[Path]
) -> dict[Arm, list[Scored]]:
    """The scores.json of every model of a study, by arm."""
    arms: dict[Arm, Sequence[Path]] = {"base": [base], "teacher": teachers, "student": students, "control": controls}
    return {
        arm: [kind.model_validate_json((payload / "scores.json").read_bytes()) for payload in payloads]
        for arm, payloads in arms.items()
    }


def known_mean(values: Float[ndarray, "..."]) -> float | None:
    """The mean of the values that are finite, or None if none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _no_spread(units: int, questions: int, *, alike: bool) -> str | None:
    if units == 1:
        return "one unit has no spread"
    if alike:
        return "all units have the same value"
    return "one question has no spread" if questions == 1 else None
