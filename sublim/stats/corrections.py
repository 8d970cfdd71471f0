"""p values of many effects, and their correction. It avoids scipy's slow modules, because reports use it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def paired_t_p(differences: Float[ndarray, " s"] | Sequence[float]) -> float:
    """Two-sided p of the paired t test that the mean difference is zero, for at least two units."""
    from scipy.special import stdtr  # a tenth of a second

    values = np.asarray(differences, dtype=float)
    assert len(values) >= 2
    if values.std(ddof=1) == 0:
        return 1.0 if values[0] == 0 else 0.0
    t = values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))
    return float(2 * stdtr(len(values) - 1, -abs(t)))


def smallest_sign_flip_p(units: int) -> float:
    """The smallest two-sided p that a sign-flip test of so many units can give."""
    return 2.0 ** (1 - units)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted so that the probability of any false positive is controlled (Holm 1979)."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p values adjusted so that the false discovery rate is controlled (Benjamini and Hochberg 1995)."""
    from scipy import stats

    return stats.false_discovery_control(p, method="bh").tolist() if len(p) else []
