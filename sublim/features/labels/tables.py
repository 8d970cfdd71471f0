"""Tables of feature labels that users give, checked for one chosen description of each feature."""

from pathlib import Path

import polars as pl

from sublim.core.errors import UserError
from sublim.files.user_tables import read_table

NEEDED = {"feature": pl.UInt32, "description": pl.String}
OPTIONAL = {"layer": pl.UInt32, "chosen": pl.Boolean, "category": pl.String, "answer": pl.String}


def read_labels(path: Path) -> pl.DataFrame:
    """Reads labels from a Parquet file: feature, description, chosen and, if present, layer, category and answer.

    Rows without a description are left out. Without a column `chosen` the first row of each feature (and layer) is
    chosen. Raises UserError for a row without a feature, for two chosen rows of a feature, and if no row is left.
    """
    table = read_table(path, NEEDED, OPTIONAL)
    if (lacking := table["feature"].is_null().arg_true().to_list()) or not len(table):
        where = f": row {lacking[0]} has no number in the column feature" if lacking else " has no row"
        raise UserError(f"{path}{where}: give labels of the SAE's features")
    table = table.filter(pl.col("description").str.strip_chars() != "")
    if table.is_empty():
        raise UserError(f"{path}: no row has a description: give labels of the SAE's features")
    keys = [name for name in ("layer", "feature") if name in table.columns]
    if "chosen" not in table.columns:
        return table.with_columns(pl.struct(keys).is_first_distinct().alias("chosen"))
    table = table.with_columns(pl.col("chosen").fill_null(False))
    if not table["chosen"].any():
        raise UserError(f"{path}: no row with a description is chosen: leave the column out to take each first one")
    twice = table.filter("chosen").filter(pl.struct(keys).is_duplicated())
    if len(twice):
        raise UserError(f"{path}: two rows of feature {twice['feature'][0]} are chosen: choose one of them")
    return table


def of_layer(table: pl.DataFrame, layer: int | None, path: Path) -> pl.DataFrame:
    """The rows of one layer. Equal feature numbers in different layers are different features.

    Raises UserError for labels of several layers if `layer` is None, and for labels of other layers only.
    """
    there = [] if "layer" not in table.columns else sorted(table["layer"].drop_nulls().unique().to_list())
    if layer is None and len(there) > 1:
        raise UserError(f"{path} has labels of layers {', '.join(map(str, there))}: give those of one layer")
    if layer is None or not there:
        return table
    if layer not in there:
        raise UserError(f"{path} has labels of layer {', '.join(map(str, there))} and none of layer {layer}")
    return table.filter(pl.col("layer").is_null() | (pl.col("layer") == layer))
