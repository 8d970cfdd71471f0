"""The permutation test of γ: which teacher is which, within each block."""

import math
from itertools import permutations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sublim.evals.specificity.config import Permutation

CLOSE = 1e-9
"""Statistics that differ by less, relative to the largest, count as equal: sums in another order differ by rounding."""


def gamma_of(table: Float[ndarray, "k k"]) -> float:
    """γ of a table of students (rows) by targets (columns): mean over targets of own minus the mean of the others."""
    k = len(table)
    return float((k * np.trace(table) - table.sum()) / (k * (k - 1)))


def permuted_gammas(table: Float[ndarray, "k k"], orders: Int[ndarray, "n k"]) -> Float[ndarray, " n"]:
    """γ of one block for each order: the students in row `orders[i, t]` are taken for those of target t."""
    k = len(table)
    own = table[orders, np.arange(k)].sum(axis=1)
    return (k * own - table.sum()) / (k * (k - 1))


def permute_teachers(tables: Float[ndarray, "b k k"], *, draws: int, seed: int) -> Permutation:
    """One-sided test of the mean γ over blocks; `tables` holds students by targets for every block.

    All (k!)^b arrangements are evaluated if they are at most `draws`; otherwise `draws` are drawn with `seed`.
    """
    blocks, k, _ = tables.shape
    observed = float(np.mean([gamma_of(table) for table in tables]))
    every = math.factorial(k) ** blocks
    if every <= draws:
        orders = np.array(list(permutations(range(k))))
        found = np.zeros(1)
        for table in tables:
            found = (found[:, None] + permuted_gammas(table, orders)[None, :]).ravel()
    else:
        rng = np.random.default_rng(seed)
        shuffled = (rng.permuted(np.tile(np.arange(k), (draws, 1)), axis=1) for _ in tables)
        found = np.sum([permuted_gammas(table, each) for table, each in zip(tables, shuffled, strict=True)], axis=0)
    found = found / blocks
    hits = int((found >= observed - CLOSE * max(float(np.abs(found).max()), abs(observed))).sum())
    exact = every <= draws
    p, smallest = (hits / every, 1 / every) if exact else ((1 + hits) / (1 + draws), 1 / (1 + draws))
    return Permutation(p=p, smallest=smallest, arrangements=every if exact else draws, exact=exact)
