"""Labels of features, from Neuronpedia or from the user, and the kinds into which they were sorted."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from sublim.core.errors import UserError
from sublim.features.labels.tables import of_layer, read_labels
from sublim.store.folder import Store

UNREADABLE = "unreadable"
"""The kind of a description if the model that sorts gave no readable answer."""


class Label(NamedTuple):
    """A feature's description."""

    text: str
    kind: str | None
    """animals, numbers, opinion, none or unreadable; None if it was not sorted."""


Labels = Mapping[int, Label]
"""Labels under the number of the feature."""


def merged(payloads: Iterable[Path]) -> dict[int, Label]:
    """Labels from several payloads of one SAE. A later payload replaces what an earlier one says of a feature."""
    found: dict[int, Label] = {}
    for folder in payloads:
        found |= label_table(folder)
    return found


def given(store: Store, where: str, layer: int | None = None) -> dict[int, Label]:
    """Labels of a layer's features in a folder or under a key of the store."""
    folder = Path(where).expanduser()
    if not folder.is_dir() and not re.fullmatch("[0-9a-f]{6,64}", where):
        raise UserError(f"labels: {where} is neither a folder nor six or more digits of a key: mend `labels`")
    return label_table(folder if folder.is_dir() else store.payload(store.search(where).artifact), layer)


def label_table(folder: Path, layer: int | None = None) -> dict[int, Label]:
    """Labels by feature, with their kind where they were sorted; `layer` picks where a table has several layers."""
    names = ("annotations.parquet", "labels.parquet")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} has neither labels.parquet nor annotations.parquet: give labels of the SAE's features"
        )
    table = of_layer(read_labels(path).filter("chosen"), layer, path)
    if path.name == names[1]:
        kinds = [None] * len(table)
    elif "category" in table.columns:
        answered = pl.col("answer").is_not_null() if "answer" in table.columns else pl.lit(True)
        unreadable = pl.when(answered).then(pl.lit(UNREADABLE))  # nobody sorted one without an answer
        kinds = table.select(pl.col("category").fill_null(unreadable))["category"].to_list()
    else:
        raise UserError(f"{path} has no column category: give it, or name the file labels.parquet")
    labels = map(Label, table["description"].to_list(), kinds)
    return dict(zip(table["feature"].to_list(), labels, strict=True))
