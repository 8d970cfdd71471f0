"""Whether an effect was shown to be next to nothing: two one-sided tests against a bound that was named beforehand."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sublim.stats.intervals import paired_t

Verdict = Literal["shown to be nothing", "not shown to be nothing", "something is there"]


class Equivalence(NamedTuple):
    """What two one-sided tests say of an effect."""

    verdict: Verdict
    low: float | None
    """Lower end of the paired t interval with twice the error, the 90 % interval at level .95; None with one unit."""
    high: float | None


def equivalence(
    effects: Float[ndarray, " s"] | Sequence[float],
    bounds: Float[ndarray, " s"] | Sequence[float],
    level: float = 0.95,
) -> Equivalence:
    """Whether the mean of `effects` lies within plus and minus the mean of `bounds`, both one value for each unit.

    shown to be nothing: both one-sided paired t tests reject, that the mean of effect - bound is at least zero and that
    the mean of effect + bound is at most zero, each with error 1 - level (Schuirmann 1987). With one bound for all
    units, that is the same as the 90 % interval lying inside the bound. With bounds that are a share of another effect
    of the same units, that effect's own uncertainty counts too, and a bound that is itself not clearly above zero shows
    nothing. something is there: not so, and the two-sided interval with `level` excludes zero. One unit shows neither.
    """
    values, limits = np.asarray(effects, dtype=float), np.asarray(bounds, dtype=float)
    assert values.shape == limits.shape
    if len(values) < 2:
        return Equivalence("not shown to be nothing", None, None)
    twice = 2 * level - 1
    inner, outer = paired_t(values, twice), paired_t(values, level)
    inside = paired_t(values - limits, twice).high < 0 < paired_t(values + limits, twice).low
    there: Verdict = "not shown to be nothing" if outer.low <= 0 <= outer.high else "something is there"
    return Equivalence("shown to be nothing" if inside else there, inner.low, inner.high)
