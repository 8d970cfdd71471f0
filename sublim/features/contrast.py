"""Which features tell two sets of rows apart, and which sets of features have more in common than chance gives.

The unit is the row: a row's value of a feature is its mean over the row's encoded tokens, zeros included, for tokens of
one row are no independent draws. Rows of one id (one prompt answered twice, one text read by two readers) are paired.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import stats

from sublim.core.errors import UserError
from sublim.features.config import ContrastConfig, OverlapConfig, OverlapRow
from sublim.models.files import write_json
from sublim.stats.intervals import holm

COLUMNS = (
    "rank", "feature", "effect", "p", "q", "difference", "mean_target", "mean_control",
    "rate_target", "rate_control", "rows_target", "rows_control",
)  # fmt: skip


class RowFeatures(NamedTuple):
    """Features by row."""

    ids: pl.Series
    """Of every row, whether anything fires in it or not."""
    values: pl.DataFrame
    """id, feature, value: the mean over the row's entries, where it is not zero."""


class Sides(NamedTuple):
    """Sums over rows of two sides, by feature."""

    table: pl.DataFrame
    """feature, and for a and b: rows (that fire), sum, squares; for pairs: squares of the difference, cross."""
    n_a: int
    n_b: int
    paired: bool


def row_features(payload: Path, sae: str) -> RowFeatures:
    """A payload of `encode_features` by row. Rows without an id of their own go by their number."""
    if not list(payload.glob(f"entries-{sae}-*.parquet")):
        known = sorted({path.name.split("-", 1)[1].rsplit("-", 1)[0] for path in payload.glob("entries-*.parquet")})
        raise UserError(f"no features of {sae} were kept, only of {', '.join(known)}: encode with that SAE")
    rows = (
        pl.scan_parquet(payload / f"entries-{sae}-*.parquet")
        .group_by("row")
        .agg(pl.col("id").first(), pl.len().alias("entries"))
        .with_columns(pl.coalesce("id", pl.col("row").cast(pl.Int64)).alias("id"))
        .sort("row")
        .collect()
    )
    values = (
        pl.scan_parquet(payload / f"features-{sae}-*.parquet")
        .group_by("row", "feature")
        .agg(pl.col("value").cast(pl.Float64).sum())
        .collect()
        .join(rows, on="row")
        .select("id", "feature", (pl.col("value") / pl.col("entries")).alias("value"))
        .sort("id", "feature")
    )
    return RowFeatures(rows["id"], values)


def contrast_features(
    out: Path, config: ContrastConfig, *, scratch: Path, target: Path, control: Path
) -> dict[str, Any]:
    """Stage: writes contrast.parquet, one line for every feature that fires on a side, and contrast.json."""
    sides = joined(row_features(target, config.sae), row_features(control, config.sae), pair=config.pair)
    table = contrast(sides, config)
    table.write_parquet(out / "contrast.parquet")
    found = significant(table, config.level)
    notes = {
        "rows": [sides.n_a, sides.n_b],
        "paired": sides.paired,
        "features": len(table),
        "tested": int(table["p"].is_not_null().sum()),
        "more": int((found["effect"] > 0).sum()),
        "less": int((found["effect"] < 0).sum()),
    }
    write_json(out / "contrast.json", {**notes, "sae": config.sae, "level": config.level})
    return notes


def joined(a: RowFeatures, b: RowFeatures, *, pair: bool) -> Sides:
    """Sums of two sides. Raises UserError where pairs are asked for and ids are there twice or nowhere in common."""
    if not pair:
        if min(len(a.ids), len(b.ids)) < 2:
            raise UserError("each side needs at least two rows: give more")
        table = one_side(a.values, "a").join(one_side(b.values, "b"), on="feature", how="full", coalesce=True)
        return Sides(table.fill_null(0).sort("feature"), len(a.ids), len(b.ids), False)
    if a.ids.n_unique() < len(a.ids) or b.ids.n_unique() < len(b.ids):
        raise UserError("an id is there twice, so that rows cannot be paired: use pair=false")
    both = a.ids.filter(a.ids.is_in(b.ids.to_list()))
    if len(both) < 2:
        raise UserError(
            f"{len(both)} rows have a fellow with the same id on the other side: use pair=false or other rows"
        )
    ours, theirs = (each.values.filter(pl.col("id").is_in(both.to_list())) for each in (a, b))
    cross = (
        ours.join(theirs, on=["id", "feature"], suffix="_b")
        .group_by("feature")
        .agg((pl.col("value") * pl.col("value_b")).sum().alias("cross"))
    )
    table = one_side(ours, "a").join(one_side(theirs, "b"), on="feature", how="full", coalesce=True)
    table = table.join(cross, on="feature", how="left").fill_null(0).sort("feature")
    return Sides(table, len(both), len(both), True)


def one_side(values: pl.DataFrame, side: str) -> pl.DataFrame:
    """Rows that fire, sum and sum of squares by feature."""
    return values.sort("feature", "id").group_by("feature", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias(f"rows_{side}"),
        pl.col("value").sum().alias(f"sum_{side}"),
        (pl.col("value") ** 2).sum().alias(f"squares_{side}"),
    )  # fmt: skip


def contrast(sides: Sides, config: ContrastConfig) -> pl.DataFrame:
    """Effect (Cohen's d, by the pooled spread of both sides), paired or Welch's t, and q of every feature."""
    column = {name: sides.table[name].to_numpy().astype(float) for name in sides.table.columns if name != "feature"}
    a, b = column["sum_a"] / sides.n_a, column["sum_b"] / sides.n_b
    var_a = np.maximum(column["squares_a"] - sides.n_a * a**2, 0) / (sides.n_a - 1)
    var_b = np.maximum(column["squares_b"] - sides.n_b * b**2, 0) / (sides.n_b - 1)
    spread = np.sqrt((var_a + var_b) / 2)
    effect = np.divide(a - b, spread, out=np.zeros_like(a), where=spread > 0)
    if sides.paired:
        n = sides.n_a
        squares = column["squares_a"] + column["squares_b"] - 2 * column["cross"]
        var = np.maximum(squares - n * (a - b) ** 2, 0) / (n - 1)
        error, df = np.sqrt(var / n), np.full_like(a, n - 1)
    else:
        of_a, of_b = var_a / sides.n_a, var_b / sides.n_b
        error = np.sqrt(of_a + of_b)
        bottom = of_a**2 / (sides.n_a - 1) + of_b**2 / (sides.n_b - 1)
        df = np.divide((of_a + of_b) ** 2, bottom, out=np.ones_like(a), where=bottom > 0)
    t = np.divide(a - b, error, out=np.zeros_like(a), where=error > 1e-12 * np.maximum(np.abs(a), np.abs(b)))
    tested = column["rows_a"] + column["rows_b"] >= config.fewest
    p = np.where(tested, 2 * stats.t.sf(np.abs(t), df), np.nan)
    q = np.full_like(p, np.nan)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    table = pl.DataFrame(
        {
            "feature": sides.table["feature"],
            "effect": effect,
            "p": p,
            "q": q,
            "difference": a - b,
            "mean_target": a,
            "mean_control": b,
            "rate_target": column["rows_a"] / sides.n_a,
            "rate_control": column["rows_b"] / sides.n_b,
            "rows_target": column["rows_a"].astype(int),
            "rows_control": column["rows_b"].astype(int),
        }
    ).with_columns(pl.col("p", "q").fill_nan(None))
    order = table.sort(pl.col("p").is_null(), pl.col("effect"), pl.col("feature"), descending=[False, True, False])
    return order.with_columns(pl.Series("rank", range(1, len(order) + 1), dtype=pl.Int64)).select(COLUMNS)


def significant(table: pl.DataFrame, level: float) -> pl.DataFrame:
    """The features that the correction leaves."""
    return table.filter(pl.col("q") <= level)


def strongest(table: pl.DataFrame, level: float, size: int) -> list[int]:
    """The set of a contrast: significant features with more on the target's side, the largest effects first."""
    return significant(table, level).filter(pl.col("effect") > 0).sort("rank").head(size)["feature"].to_list()


def overlap_features(out: Path, config: OverlapConfig, *, scratch: Path, contrasts: dict[str, Path]) -> dict[str, Any]:
    """Stage: writes overlap.json, a line for every two of the named contrasts' sets."""
    tables = {name: pl.read_parquet(path / "contrast.parquet") for name, path in contrasts.items()}
    rows = overlaps(tables, config)
    write_json(out / "overlap.json", {"rows": [row.model_dump(mode="json") for row in rows]})
    return {"pairs": len(rows)}


def overlaps(tables: Mapping[str, pl.DataFrame], config: OverlapConfig) -> list[OverlapRow]:
    """Every two sets. Chance is that of features matched to one set and of those matched to the other, the likelier."""
    sets = {name: strongest(tables[name], config.level, config.size) for name in sorted(tables)}
    classes = {name: rate_classes(tables[name], config.bins) for name in sets}
    rows: list[OverlapRow] = []
    names = sorted(tables)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            one, other = sets[first], sets[second]
            shared = sorted({*one} & {*other})
            ways = [chance(classes[first], one, other), chance(classes[second], other, one)]
            means = [float(way @ np.arange(len(way))) for way in ways]
            # Sums of what is exactly 1 differ in their last digit and would choose by that.
            tails = [float(way[len(shared) :].sum()) if shared else 1.0 for way in ways]
            tail, mean, way = max(zip(tails, means, ways, strict=True), key=lambda each: each[:2])
            below = way.cumsum()
            low, high = (int(np.searchsorted(below, bound)) for bound in (0.025, 0.975))
            rows.append(
                OverlapRow(
                    first=first,
                    second=second,
                    sizes=(len(one), len(other)),
                    shared=len(shared),
                    chance=mean,
                    low=low,
                    high=high,
                    p=min(tail, 1.0) if one and other else None,
                    features=shared,
                )
            )
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else row.model_copy(update={"p_adjusted": next(corrected)}) for row in rows]


def rate_classes(table: pl.DataFrame, bins: int) -> list[Int[ndarray, " m"]]:
    """The tested features of a contrast in classes of firing rate, the mean of both sides'; equal rates share one."""
    pool = table.filter(pl.col("p").is_not_null())
    if pool.is_empty():
        return []
    rate = (pool["rate_target"].to_numpy() + pool["rate_control"].to_numpy()) / 2
    place = ((stats.rankdata(rate) - 0.5) / len(pool) * bins).astype(int)
    features = pool["feature"].to_numpy()
    return [features[place == each] for each in range(bins)]


def chance(
    classes: Sequence[Int[ndarray, " m"]], chosen: Sequence[int], other: Sequence[int]
) -> Float[ndarray, " shared"]:
    """How likely a random set, with as many features of each class as `chosen` has, shares 0, 1, 2, … with `other`.

    Exact: within a class the number is hypergeometric, and classes are drawn independently of one another.
    """
    shares = np.ones(1)
    for each in classes:
        count, hits = int(np.isin(each, chosen).sum()), int(np.isin(each, other).sum())
        if most := min(count, hits):
            shares = np.convolve(shares, stats.hypergeom.pmf(np.arange(most + 1), len(each), hits, count))
    return shares
