"""Specific and generic effects, γ and their intervals, computed a second time from scores.json files.

Nothing of sublim is imported: numpy, scipy and the formulas as the literature has them.
"""

import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats


def margins(folders: list[Path], word: str) -> np.ndarray:
    """Models by questions."""
    read = [json.loads((folder / "scores.json").read_text()) for folder in folders]
    return np.array([each["metrics"]["margin"][word]["per_question"] for each in read], dtype=float)


def unit_means(matrix: np.ndarray, blocks: list[int]) -> np.ndarray:
    """Pairs by questions to units by questions."""
    names = sorted({*blocks}, key=blocks.index)
    if len(names) == 1:
        return matrix
    return np.stack([matrix[[i for i, b in enumerate(blocks) if b == name]].mean(axis=0) for name in names])


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's t, by scipy's own interval."""
    return stats.t.interval(level, len(values) - 1, loc=values.mean(), scale=stats.sem(values))


def crossed(matrix: np.ndarray, draws: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """The crossed bootstrap with its variance from the two-way mean squares and t quantiles in place of normal ones."""
    n, m = matrix.shape
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, [1 / n] * n, size=draws) / n
    columns = rng.integers(m, size=(draws, m))
    means = np.array([(w @ matrix)[c].mean() for w, c in zip(weights, columns, strict=True)])
    grand, rows, cols = matrix.mean(), matrix.mean(axis=1), matrix.mean(axis=0)
    ms_unit = m * ((rows - grand) ** 2).sum() / (n - 1)
    ms_question = n * ((cols - grand) ** 2).sum() / (m - 1)
    ms_rest = ((matrix - rows[:, None] - cols[None, :] + grand) ** 2).sum() / ((n - 1) * (m - 1))
    a, b, c = ms_unit / (n * m), ms_question / (n * m), ms_rest / (n * m)
    variance = max(a - c, 0) + max(b - c, 0) + c
    df = (a + b - c) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1) + c**2 / ((n - 1) * (m - 1)))
    df = max(df, min(n, m) - 1)
    tail = 0.5 + level / 2
    scale = stats.t.ppf(tail, df) / stats.norm.ppf(tail) * np.sqrt(variance) / means.std()
    low, high = np.quantile(means, [1 - tail, tail])
    return grand + scale * (low - grand), grand + scale * (high - grand)


def recomputed(
    students: dict[str, list[Path]], controls: list[Path], blocks: list[int], draws: int, seed: int
) -> dict[str, Any]:
    """Every effect with both intervals, from the folders of scores."""
    targets = [*students]
    found: dict[str, Any] = {}
    specifics: list[np.ndarray] = []
    for target in targets:
        own, control = margins(students[target], target), margins(controls, target)
        others = np.mean([margins(students[other], target) for other in targets if other != target], axis=0)
        specifics.append(own - others)
        for part, matrix in (("total", own - control), ("generic", others - control), ("specific", own - others)):
            found[f"{target} {part}"] = _effect(unit_means(matrix, blocks), draws, seed)
    found["gamma"] = _effect(unit_means(np.mean(specifics, axis=0), blocks), draws, seed)
    return found


def _effect(matrix: np.ndarray, draws: int, seed: int) -> tuple[float, ...]:
    return (matrix.mean(), *t_interval(matrix.mean(axis=1)), *crossed(matrix, draws, seed))


def brute_force_p(tables: np.ndarray) -> float:
    """The permutation p of γ: every relabelling of every block is built as a table, and γ taken from its definition."""

    def gamma(many: list[np.ndarray]) -> float:
        k = len(many[0])
        values = [table[t, t] - np.mean([table[s, t] for s in range(k) if s != t]) for table in many for t in range(k)]
        return float(np.mean(values))

    observed = gamma([*tables])
    orders = [*permutations(range(tables.shape[1]))]
    every = [
        gamma([table[list(order)] for table, order in zip(tables, chosen, strict=True)])
        for chosen in product(orders, repeat=len(tables))
    ]
    return float(np.mean([each >= observed - 1e-12 for each in every]))
