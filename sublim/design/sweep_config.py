"""The table of a sweep: which rows it has, and how their tests are corrected."""

from typing import Any, Literal

from pydantic import Field

from sublim.core.config import Config
from sublim.evals.preference.config import MetricName


class SweepRow(Config):
    """One effect of the sweep: a target, an arm and a point of the grid, over all seeds and blocks."""

    target: str
    arm: str
    of: str = ""
    """Whose teacher wrote the rows, where it is another target's."""
    updates: int | None = None
    """Updates of the students; null for their last."""
    grid: dict[str, Any] = Field(default_factory=dict[str, Any])
    expected: str = ""
    """The sign that was written down beforehand."""
    comparison: str | None = None
    """Name of the comparison among the stage's inputs; null when there is none."""
    reason: str | None = None
    """Why there is none, or which cells of it are missing."""


class SweepTableConfig(Config):
    """What `tabulate_sweep` puts together."""

    rows: tuple[SweepRow, ...]
    axes: tuple[str, ...]
    """Names of the grid's axes."""
    primary: MetricName = "margin"
    """Whose tests are corrected."""
    correction: Literal["holm", "benjamini_hochberg"] = "holm"
    """Over the targets of one arm, grid point and number of updates."""
    level: float = 0.95
    """Of the test whose power is told; the comparisons have their own, of their intervals."""


class CellRecordConfig(Config):
    """What `record_cell` notes."""

    name: str
    """The cell, as tables call it."""
