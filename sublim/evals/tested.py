"""The tests of a run: every effect that its report tests, with its p and the correction for all of them together."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

from sublim.evals.effect_config import Effect
from sublim.stats.corrections import holm, paired_t_p

K = TypeVar("K", bound=Hashable)


def corrected(effects: Mapping[K, Effect | None]) -> dict[K, Effect]:
    """Those of `effects` that can be tested, each with `p`, `p_holm` and `comparisons`, in the order given.

    `effects` are all that a report tests, each under a name of its own: an effect that is shown twice counts once. The
    test is the two-sided paired t test over the units; an effect that brings a `p`, as from a permutation, keeps it.
    A single unit and units with equal values have no test and are left out, so they do not count.
    """
    p = {name: found for name, effect in effects.items() if effect and (found := _p(effect)) is not None}
    adjusted = holm([*p.values()])
    known = {name: effect for name, effect in effects.items() if effect}
    return {
        name: known[name].model_copy(update={"p": p[name], "p_holm": after, "comparisons": len(p)})
        for name, after in zip(p, adjusted, strict=True)
    }


def _p(effect: Effect) -> float | None:
    if effect.p is not None:
        return effect.p
    if effect.units < 2 or np.ptp(effect.per_unit) == 0:
        return None
    return paired_t_p(effect.per_unit)
