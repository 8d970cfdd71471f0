"""Parquet tables that users give: read with the required columns and types, or refused by column and row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from sublim.core.errors import UserError
from sublim.files.user_files import reading

PARQUET = "Parquet file"
Types = Mapping[str, type[pl.DataType]]
NAMES: Mapping[type[pl.DataType], str] = {
    pl.String: "text",
    pl.Boolean: "true or false",
    pl.UInt32: "whole numbers from 0",
}


def read_columns(path: Path) -> list[str]:
    """The names of the columns of a user's Parquet file."""
    with reading(path, PARQUET, pl.exceptions.PolarsError):
        return list(pl.read_parquet_schema(path))


def read_table(path: Path, needed: Types, optional: Types | None = None) -> pl.DataFrame:
    """Reads the columns `needed`, and those of `optional` that exist, cast to their types.

    Raises UserError for a missing column, and for a value that the type cannot hold, with its row counted from 0.
    """
    there = read_columns(path)
    if lacking := [name for name in needed if name not in there]:
        raise UserError(
            f"{path} has no column {lacking[0]}: it needs {', '.join(needed)} (its columns are {', '.join(there)})"
        )
    types = {**needed, **{name: kind for name, kind in (optional or {}).items() if name in there}}
    with reading(path, PARQUET, pl.exceptions.PolarsError):
        table = pl.read_parquet(path, columns=list(types))
    return pl.DataFrame([_cast(path, table[name], kind) for name, kind in types.items()])


def _cast(path: Path, column: pl.Series, kind: type[pl.DataType]) -> pl.Series:
    if column.dtype == kind or column.dtype == pl.Null:
        return column.cast(kind)
    if not _may_hold(column.dtype, kind):
        raise UserError(f"{path}: the column {column.name} holds {column.dtype}, it should hold {NAMES[kind]}")
    found = column.cast(kind, strict=False)
    same = (found.cast(column.dtype) == column).fill_null(False)
    if wrong := (column.is_not_null() & ~same).arg_true().to_list():
        value: Any = column[wrong[0]]
        raise UserError(
            f"{path}: row {wrong[0]} has {column.name} = {value!r}, it should hold {NAMES[kind]}: correct or remove it"
        )
    return found


def _may_hold(dtype: pl.DataType, kind: type[pl.DataType]) -> bool:
    """Whether a column of type `dtype` may be read as `kind`: text can hold numbers, booleans are no numbers."""
    if kind == pl.String:
        return isinstance(dtype, pl.Categorical | pl.Enum)
    return kind != pl.Boolean and (dtype.is_numeric() or dtype == pl.String)
