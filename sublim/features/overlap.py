"""Which sets of features overlap more than by chance, where chance keeps the company that features keep.

Features fire together: whoever is in a set brings its companions. Chance that draws features one by one misses that
and finds overlaps everywhere (for clusters of three P(p < .005) was .03 to .05). Here the null is drawn from the rows:
which side each row is on is permuted (within its pair where rows are paired; the features' own differences are taken
out first, or those that do differ would come back more often), every feature's effect is computed anew, and the
features with the largest effects are taken, as many of each class of firing rate as the set has. Companions then enter
and leave together. What such a set shares with the other set is what a contrast with nothing behind it shares.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import stats
from scipy.sparse import csr_array

from sublim.core.progress import progress
from sublim.features.config import OverlapConfig, OverlapRow
from sublim.features.contrast import RowFeatures, common_rows, feature_set, row_features
from sublim.models.files import read_json, write_json
from sublim.stats.corrections import holm

ROUND = 256
"""Permutations computed at once; it determines the memory that is needed."""


class FeatureSet(NamedTuple):
    """A contrast's set of features, and the sets that its rows give when their sides are permuted."""

    features: list[int]
    drawn: Int[ndarray, "permutations k"]
    """As many features as the set has, in every permutation."""


def overlap_features(
    out: Path,
    config: OverlapConfig,
    *,
    scratch: Path,
    contrasts: dict[str, Path],
    targets: dict[str, Path],
    controls: dict[str, Path],
) -> dict[str, Any]:
    """Stage: writes overlap.json: an `OverlapRow` for each pair of the named contrasts.

    `targets` and `controls` are the encoded rows of both sides, under the contrasts' names. Costs `permutations`
    products of signs and rows for each contrast.
    """
    sets: dict[str, FeatureSet] = {}
    with progress("permuting rows", len(contrasts)) as advance:
        for number, (name, path) in enumerate(sorted(contrasts.items())):
            note, table = read_json(path / "contrast.json"), pl.read_parquet(path / "contrast.parquet")
            sides = [row_features(side[name], note["sae"]) for side in (targets, controls)]
            rng = np.random.default_rng((config.seed, number))
            sets[name] = drawn_set(table, sides[0], sides[1], config, rng, pair=note["paired"])
            advance(1)
    rows = overlaps(sets)
    write_json(out / "overlap.json", {"rows": [row.model_dump(mode="json") for row in rows]})
    return {"pairs": len(rows), "permutations": config.permutations}


def drawn_set(
    table: pl.DataFrame,
    target: RowFeatures,
    control: RowFeatures,
    config: OverlapConfig,
    rng: np.random.Generator,
    *,
    pair: bool,
) -> FeatureSet:
    """A contrast's set of features with its permuted fellows; `table` is what `contrast` made of both sides."""
    features = feature_set(table, config.level, config.size)
    classes = rate_classes(table, config.bins)
    counts = [int(np.isin(each, features).sum()) for each in classes]
    used = [(members, count) for members, count in zip(classes, counts, strict=True) if count]
    if not used:
        return FeatureSet(features, np.zeros((config.permutations, 0), dtype=np.int64))
    columns = np.concatenate([members for members, _ in used])
    a, b = common_rows(target, control) if pair else (target, control)
    values = (_matrix(a, columns), _matrix(b, columns))
    drawn: list[Int[ndarray, "r k"]] = []
    for start in range(0, config.permutations, ROUND):
        count = min(ROUND, config.permutations - start)
        effects = paired_effects(*values, rng, count) if pair else unpaired_effects(*values, rng, count)
        first, parts = 0, list[Int[ndarray, "r m"]]()
        for members, size in used:
            own = effects[:, first : first + len(members)]
            parts.append(members[np.argpartition(-own, size - 1, axis=1)[:, :size]])
            first += len(members)
        drawn.append(np.concatenate(parts, axis=1))
    return FeatureSet(features, np.concatenate(drawn))


def _matrix(rows: RowFeatures, columns: Int[ndarray, " f"]) -> csr_array:
    """The values of these features, sparse: a line for each id, in their order; rows of one id move together."""
    lines = pl.DataFrame({"id": rows.ids.unique().sort()}).with_row_index("line")
    places = pl.DataFrame({"feature": pl.Series(columns).cast(pl.UInt32), "column": np.arange(len(columns))})
    known = rows.values.with_columns(pl.col("feature").cast(pl.UInt32)).join(places, on="feature").join(lines, on="id")
    where = (known["line"].to_numpy(), known["column"].to_numpy())
    return csr_array((known["value"].to_numpy(), where), shape=(len(lines), len(columns)))


def shape_of(matrix: csr_array) -> tuple[int, int]:
    """Lines and columns."""
    assert matrix.shape is not None
    return int(matrix.shape[0]), int(matrix.shape[1])


def paired_effects(
    a: csr_array, b: csr_array, rng: np.random.Generator, count: int
) -> Float[ndarray, "permutations f"]:
    """The effect (Cohen's d, as in `contrast`) of each feature when each pair's sides are swapped by a coin, after the
    features' own mean differences are taken out."""
    n, _ = shape_of(a)
    both, apart = np.asarray((a + b).sum(0)) / n, np.asarray((a - b).sum(0)) / n
    squares = np.asarray((a.multiply(a) + b.multiply(b)).sum(0)) - n * apart**2 / 2
    signs = rng.choice((-1.0, 1.0), size=(count, n))
    difference = (np.asarray(((a - b).T @ signs.T).T) - signs.sum(1)[:, None] * apart) / n
    # Sums over both sides stay as they are: mean_a² + mean_b² = (both² + difference²) / 2
    return _effect(difference, squares - n * (both**2 + difference**2) / 2, 2 * (n - 1))


def unpaired_effects(
    a: csr_array, b: csr_array, rng: np.random.Generator, count: int
) -> Float[ndarray, "permutations f"]:
    """The effect of each feature when all rows of both sides are dealt out anew, as many to each side, after each
    side's mean is taken out."""
    (n_a, width), (n_b, _) = shape_of(a), shape_of(b)
    dealt = rng.permuted(np.tile(np.repeat((1.0, 0.0), (n_a, n_b)), (count, 1)), axis=1)
    first, first_squares = np.zeros((count, width)), np.zeros((count, width))
    whole_squares = np.zeros(width)
    for side, n, chosen in ((a, n_a, dealt[:, :n_a]), (b, n_b, dealt[:, n_a:])):
        mean, squared, taken = np.asarray(side.sum(0)) / n, side.multiply(side), chosen.sum(1)[:, None]
        sums = np.asarray((side.T @ chosen.T).T)
        first += sums - taken * mean
        first_squares += np.asarray((squared.T @ chosen.T).T) - 2 * sums * mean + taken * mean**2
        whole_squares += np.asarray(squared.sum(0)) - n * mean**2
    # All values together sum to nothing now, so that the rest's sum is the first's with its sign turned.
    var_a = (first_squares - first**2 / n_a) / (n_a - 1)
    var_b = (whole_squares - first_squares - first**2 / n_b) / (n_b - 1)
    return _effect(first / n_a + first / n_b, var_a + var_b, 2)


def _effect(difference: Float[ndarray, "p f"], squares: Float[ndarray, "p f"], df: int) -> Float[ndarray, "p f"]:
    spread = np.sqrt(np.maximum(squares, 0) / df)
    return np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 0)


def overlaps(sets: Mapping[str, FeatureSet]) -> list[OverlapRow]:
    """The overlaps of all pairs of sets.

    The rows of one contrast are permuted, then those of the other; the way with the larger p-value is used.
    """
    rows: list[OverlapRow] = []
    for first, second in combinations(sorted(sets), 2):
        one, other = sets[first], sets[second]
        shared = sorted({*one.features} & {*other.features})
        ways = [np.isin(each.drawn, against.features).sum(1) for each, against in ((one, other), (other, one))]
        found = [((1 + int((way >= len(shared)).sum())) / (1 + len(way)), float(way.mean()), way) for way in ways]
        p, chance, way = max(found, key=lambda each: each[:2])
        low, high = (int(np.quantile(way, bound, method="inverted_cdf")) for bound in (0.025, 0.975))
        rows.append(
            OverlapRow(
                first=first,
                second=second,
                sizes=(len(one.features), len(other.features)),
                shared=len(shared),
                chance=chance,
                low=low,
                high=high,
                p=p if one.features and other.features else None,
                features=shared,
            )
        )
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else row.model_copy(update={"p_adjusted": next(corrected)}) for row in rows]


def rate_classes(table: pl.DataFrame, bins: int) -> list[Int[ndarray, " m"]]:
    """The tested features of a contrast in classes of firing rate (mean of both sides); equal rates share a class."""
    pool = table.filter(pl.col("p").is_not_null())
    if pool.is_empty():
        return []
    rate = (pool["rate_target"].to_numpy() + pool["rate_control"].to_numpy()) / 2
    place = ((stats.rankdata(rate) - 0.5) / len(pool) * bins).astype(int)
    features = pool["feature"].to_numpy().astype(np.int64)
    return [features[place == each] for each in range(bins)]
