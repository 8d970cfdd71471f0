"""Matplotlib figures as SVG files, whose bytes depend only on what is drawn."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "sublim",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
}


@contextmanager
def drawing(path: Path, width: float, height: float) -> Generator[Figure]:
    """Gives a figure of `width` × `height` inches, and writes it to `path` if the block does not fail."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


@contextmanager
def panels(path: Path, width: float, height: float, rows: int, columns: int, **shared: Any) -> Generator[Any]:
    """Gives `rows` × `columns` panels of a `drawing`, as an array."""
    with drawing(path, width, height) as figure:
        yield figure.subplots(rows, columns, squeeze=False, **shared)
