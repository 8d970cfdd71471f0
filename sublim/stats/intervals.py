"""Statistics of paired effects: intervals over units and questions, the sign-flip test, and power.

Every student answers every question, so units and questions are crossed, and an effect is a matrix [units, questions]
of paired differences. The interval of `paired_t` holds for the given questions; that of `crossed_bootstrap` also
generalises to other questions of the same kind. What both cover with few units and skewed spreads is simulated in
`tests/benchmarks/coverage.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from sublim.core.errors import UserError
from sublim.stats.corrections import smallest_sign_flip_p

FEW_UNITS = 6
"""With fewer units there are too few to resample: the interval to quote is that on these questions."""


class Interval(NamedTuple):
    """An estimate with a confidence interval, which covers the true value in a share `level` of repetitions."""

    estimate: float
    low: float
    high: float
    level: float
    n: int
    """Number of independent units."""


def paired_t(differences: Float[ndarray, " s"] | Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of paired differences, one for each of at least two units."""
    values = np.asarray(differences, dtype=float)
    assert values.ndim == 1
    assert len(values) >= 2
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half, level, len(values))


def t_bounds(
    differences: Float[ndarray, " s"] | Sequence[float], level: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Both ends of `paired_t`; None for each where there are fewer than two units."""
    if len(differences) < 2:
        return None, None
    found = paired_t(differences, level)
    return found.low, found.high


class Components(NamedTuple):
    """Variance of the mean of a crossed matrix if units and questions were drawn again."""

    variance: float
    """Variance of the grand mean: units/n + questions/m + residual/(nm), with no component below zero."""
    df: float
    """Degrees of freedom of `variance` (Satterthwaite 1946), at least min(n, m) - 1."""


def crossed_components(matrix: Float[ndarray, "s q"]) -> Components:
    """Two-way random-effects variance of the grand mean, from mean squares with one value per cell."""
    n, m = matrix.shape
    rows, columns = matrix.mean(axis=1), matrix.mean(axis=0)
    residual = matrix - rows[:, None] - columns[None, :] + matrix.mean()
    by_unit, by_question = rows.var(ddof=1) / n, columns.var(ddof=1) / m
    within = (residual**2).sum() / ((n - 1) * (m - 1) * n * m)
    variance = max(by_unit - within, 0.0) + max(by_question - within, 0.0) + within
    return Components(float(variance), satterthwaite(by_unit, by_question, within, n, m))


def satterthwaite(by_unit: float, by_question: float, within: float, n: int, m: int) -> float:
    """Degrees of freedom of by_unit + by_question - within, at least min(n, m) - 1 (Satterthwaite 1946)."""
    spread = by_unit**2 / (n - 1) + by_question**2 / (m - 1) + within**2 / ((n - 1) * (m - 1))
    df = (by_unit + by_question - within) ** 2 / spread if spread > 0 else 0.0
    return float(max(df, min(n, m) - 1))


def crossed_bootstrap(
    matrix: Float[ndarray, "s q"], rng: np.random.Generator, *, draws: int = 10_000, level: float = 0.95
) -> Interval:
    """Percentile interval of the grand mean from resampling units and questions independently, at least two of each.

    The plain crossed bootstrap (Owen 2007, "The pigeonhole bootstrap") counts the residual variance three times. With
    few units its percentiles are also normal quantiles where t quantiles are due (Hesterberg 2015, section 4: with 10
    units and no variation between questions it covers 88 %). Both are corrected by rescaling the draws about the
    estimate: to the unbiased variance of `crossed_components`, and from normal to t quantiles with its degrees of
    freedom. The skewness of the draws is kept.

    Below `FEW_UNITS` units each bound is at least as far from the estimate as that of `paired_t` over the units. The
    corrections do not mend percentiles of so few units: nominal 95 % intervals of 2, 3 and 4 units
    covered .881, .932 and .939 (units, questions and residuals normal with equal spread, 50 questions, 2,000
    repetitions), and cover .953, .960 and .950 with the rule. Neither this interval nor the paired t mends skew: with
    exponential effects of units both cover .88 to .92 up to 10 units, with lognormal ones .83 to .92, and nearly all
    misses lie on one side.
    """
    n, m = matrix.shape
    assert min(n, m) >= 2
    units = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
    questions = rng.integers(m, size=(draws, m))
    means = np.take_along_axis(units @ matrix, questions, axis=1).mean(axis=1)
    estimate, spread = float(matrix.mean()), float(means.std())
    parts = crossed_components(matrix)
    upper = (1 + level) / 2
    tail = stats.t.ppf(upper, parts.df) / stats.norm.ppf(upper)
    scale = float(tail * np.sqrt(parts.variance) / spread) if spread > 0 else 0.0
    low, high = (float(estimate + scale * (bound - estimate)) for bound in np.quantile(means, [1 - upper, upper]))
    if n < FEW_UNITS:
        units_alone = paired_t(matrix.mean(axis=1), level)
        low, high = min(low, units_alone.low), max(high, units_alone.high)
    return Interval(estimate, low, high, level, n)


class SignFlip(NamedTuple):
    """Result of a sign-flip test, with the smallest p that the number of units allows."""

    p: float
    smallest: float
    """Smallest possible p, 2 / 2**units: with fewer than six units no result reaches .05."""
    exact: bool
    """Whether all sign flips were evaluated. Otherwise `p` comes from a sample of them."""


def sign_flip_test(
    differences: Float[ndarray, " s"] | Sequence[float], *, draws: int = 100_000, seed: int = 0
) -> SignFlip:
    """Two-sided permutation test of the hypothesis that the differences are symmetric about zero.

    It is exact if all 2**n sign flips are at most `draws`.
    """
    values = np.asarray(differences, dtype=float)
    test = stats.permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        n_resamples=draws,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    exact = 2 ** len(values) <= draws
    return SignFlip(float(test.pvalue), smallest_sign_flip_p(len(values)) if exact else 2 / (draws + 1), exact)


def power(units: int, effect: float, sd: float, level: float = 0.95) -> float:
    """Power of a two-sided paired t test over `units`; `sd` is the standard deviation of one unit's difference."""
    return two_sided_power(units - 1, effect / sd * float(np.sqrt(units)), level)


def two_sided_power(df: float, shift: float, level: float = 0.95) -> float:
    """Power of a two-sided t test with `df` degrees of freedom and noncentrality `shift`."""
    critical = float(stats.t.ppf((1 + level) / 2, df))
    found = float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))
    if np.isfinite(found):
        return found
    # For few degrees of freedom and a large shift scipy returns NaN. Then average over quantiles of the variance.
    spread = np.sqrt(stats.chi2.ppf((np.arange(20_000) + 0.5) / 20_000, df) / df)
    return float((stats.norm.sf(critical * spread - shift) + stats.norm.cdf(-critical * spread - shift)).mean())


def units_needed(effect: float, sd: float, *, wanted: float = 0.8, level: float = 0.95, most: int = 10_000) -> int:
    """The smallest number of units with which the paired t test has power `wanted`; UserError above `most`."""
    if effect == 0 or sd <= 0:
        raise UserError("power needs an effect that is not zero and a spread above zero: give both")
    # By counting up instead of bisection, because scipy's noncentral t is inaccurate far above the answer.
    for units in range(2, most + 1):
        if power(units, effect, sd, level) >= wanted:
            return units
    raise UserError(f"more than {most} units would be needed for an effect of {effect} with spread {sd}")


def wilson(count: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a share of n independent trials (Wilson 1927).

    Use it for one answer to each of n questions from a population, and not for several answers to the same questions.
    """
    bounds = stats.binomtest(count, n).proportion_ci(level, method="wilson")
    return Interval(count / n, float(bounds.low), float(bounds.high), level, n)


def clustered_share(share: float, clusters: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a mean of shares, where each question counts as one trial regardless of its answers.

    The variance of a question's share is at most that of a single yes or no, so the interval is conservative. It stays
    between 0 and 1, and its width is not zero even if every share is 0.
    """
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    center = (share + z2 / (2 * clusters)) / (1 + z2 / clusters)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * clusters)) / clusters) / (1 + z2 / clusters)
    return Interval(share, max(float(center - half), 0.0), min(float(center + half), 1.0), level, clusters)


class PairedShares(NamedTuple):
    """Difference of two paired shares (first minus second), from two yes-or-no outcomes of each of n questions."""

    difference: Interval
    gained: int
    """Questions that only the first got right."""
    lost: int
    """Questions that only the second got right."""
    p: float
    """Exact two-sided p of McNemar's test that gains and losses are equally likely."""


def paired_shares(first: Bool[ndarray, " q"], second: Bool[ndarray, " q"], level: float = 0.95) -> PairedShares:
    """Difference of two paired shares with Newcombe's interval (1998, method 10), for independent questions.

    The interval has a width even if no question differs.
    """
    n = len(first)
    assert n == len(second) > 0
    both, gained = int((first & second).sum()), int((first & ~second).sum())
    lost = int((~first & second).sum())
    neither = n - both - gained - lost
    one, other = wilson(both + gained, n, level), wilson(both + lost, n, level)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    product = both * neither - gained * lost
    # The method's continuity correction, for outcomes that are positively correlated.
    correlation = (max(product - n / 2, 0) if product > 0 else product) / np.sqrt(margins) if margins else 0.0

    def distance(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0)))

    estimate = (gained - lost) / n
    low = estimate - distance(one.estimate - one.low, other.high - other.estimate)
    high = estimate + distance(one.high - one.estimate, other.estimate - other.low)
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return PairedShares(Interval(estimate, low, high, level, n), gained, lost, p)
