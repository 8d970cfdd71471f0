"""Which SAE features differ between two sets of rows.

The unit of the tests is the row, because tokens of one row are not independent. The value of a feature in a row is its
mean over the encoded tokens, zeros included. Rows with equal ids (two answers to one prompt, or one text read by two
models) are paired.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from sublim.core.errors import UserError
from sublim.features.config import ContrastConfig
from sublim.models.files import write_json


class RowFeatures(NamedTuple):
    """The features of a set of rows."""

    ids: pl.Series
    """The ids of all rows, also of those in which no feature fires."""
    values: pl.DataFrame
    """Columns id, feature, value (the mean over the entries of the row); zeros are left out."""


class Sides(NamedTuple):
    """Sums over the rows of two sides (a: target, b: control), for each feature."""

    table: pl.DataFrame
    """Columns feature and, for each side, rows_ (in which it fires), sum_ and squares_; for pairs also cross, the sum
    of products."""
    n_a: int
    n_b: int


def row_features(payload: Path, sae: str) -> RowFeatures:
    """Reads a payload of `encode_features`, with means over the entries of each row.

    Rows without an id are identified by their number. Raises UserError if the payload has no features of `sae`.
    """
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
    """Stage: writes contrast.parquet, with a line for each feature that fires on either side, and contrast.json.

    The columns are those of `contrast`.
    """
    sides = sum_sides(row_features(target, config.sae), row_features(control, config.sae), pair=config.pair)
    table = contrast(sides, config)
    table.write_parquet(out / "contrast.parquet")
    found = significant(table, config.level)
    notes = {
        "rows": [sides.n_a, sides.n_b],
        "paired": config.pair,
        "features": len(table),
        "tested": int(table["p"].is_not_null().sum()),
        "more": int((found["effect"] > 0).sum()),
        "less": int((found["effect"] < 0).sum()),
    }
    write_json(out / "contrast.json", {**notes, "sae": config.sae, "level": config.level})
    return notes


def sum_sides(a: RowFeatures, b: RowFeatures, *, pair: bool) -> Sides:
    """Sums over the rows of two sides; with `pair`, over those rows whose ids are on both.

    Raises UserError for too few rows and, with `pair`, for ids that occur twice.
    """
    if pair:
        a, b = common_rows(a, b)
    elif min(len(a.ids), len(b.ids)) < 2:
        raise UserError("each side needs at least two rows: give more")
    table = sum_side(a.values, "a").join(sum_side(b.values, "b"), on="feature", how="full", coalesce=True)
    if pair:
        cross = (
            a.values.join(b.values, on=["id", "feature"], suffix="_b")
            .sort("feature", "id")  # a join has no order, and that of a sum decides its last bit
            .group_by("feature", maintain_order=True)
            .agg((pl.col("value") * pl.col("value_b")).sum().alias("cross"))
        )
        table = table.join(cross, on="feature", how="left")
    return Sides(table.fill_null(0).sort("feature"), len(a.ids), len(b.ids))


def common_rows(a: RowFeatures, b: RowFeatures) -> list[RowFeatures]:
    """The rows of both sides whose ids are on both. Raises UserError for too few, and for ids that occur twice."""
    if a.ids.n_unique() < len(a.ids) or b.ids.n_unique() < len(b.ids):
        raise UserError("an id occurs twice, so that rows cannot be paired: use pair=false")
    both = a.ids.filter(a.ids.is_in(b.ids.to_list()))
    if len(both) < 2:
        raise UserError(
            f"{len(both)} rows have a partner with the same id on the other side: use pair=false or other rows"
        )
    return [RowFeatures(both, each.values.filter(pl.col("id").is_in(both.to_list()))) for each in (a, b)]


def sum_side(values: pl.DataFrame, side: str) -> pl.DataFrame:
    """For each feature: the number of rows in which it fires, the sum and the sum of squares."""
    return values.sort("feature", "id").group_by("feature", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias(f"rows_{side}"),
        pl.col("value").sum().alias(f"sum_{side}"),
        (pl.col("value") ** 2).sum().alias(f"squares_{side}"),
    )  # fmt: skip


def contrast(sides: Sides, config: ContrastConfig) -> pl.DataFrame:
    """Tests every feature: paired t-test or Welch's t-test, and Benjamini-Hochberg q-values.

    `effect` is Cohen's d with the pooled standard deviation of both sides. `rate_` is the share of rows in which the
    feature fires. `p` and `q` are null where it fires in fewer rows than `config.fewest`. `rank` orders by effect.
    """
    column = {name: sides.table[name].to_numpy().astype(float) for name in sides.table.columns if name != "feature"}
    a, b = column["sum_a"] / sides.n_a, column["sum_b"] / sides.n_b
    var_a = np.maximum(column["squares_a"] - sides.n_a * a**2, 0) / (sides.n_a - 1)
    var_b = np.maximum(column["squares_b"] - sides.n_b * b**2, 0) / (sides.n_b - 1)
    spread = np.sqrt((var_a + var_b) / 2)
    effect = np.divide(a - b, spread, out=np.zeros_like(a), where=spread > 0)
    if config.pair:
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
    return order.with_row_index("rank", offset=1).cast({"rank": pl.Int64})


def significant(table: pl.DataFrame, level: float) -> pl.DataFrame:
    """The features with q at most `level`."""
    return table.filter(pl.col("q") <= level)


def feature_set(table: pl.DataFrame, level: float, size: int) -> list[int]:
    """The significant features that are larger on the target's side: at most `size`, the largest effects first."""
    return significant(table, level).filter(pl.col("effect") > 0).sort("rank").head(size)["feature"].to_list()
