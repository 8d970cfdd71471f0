"""Settings of a sweep's table: its rows, and the correction of their tests."""

from typing import Any, Literal

from pydantic import Field

from sublim.core.config import Config
from sublim.evals.preference.config import Primary


class SweepRow(Config):
    """One effect of the sweep, over all seeds and blocks: a target, an arm and a point of the grid."""

    target: str
    arm: str
    of: str = ""
    """The other target whose teacher wrote the rows, where it is not this target's."""
    updates: int | None = None
    """Number of updates of the students; None for their last."""
    grid: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Value of each axis of the grid at this point."""
    expected: str = ""
    """The expectation stated beforehand."""
    comparison: str | None = None
    """Name of the comparison among the stage's inputs; None where there is none."""
    reason: str | None = None
    """Why there is no comparison, or which of its cells are missing."""


class SweepTableConfig(Config):
    """Settings of the stage `tabulate_sweep`."""

    rows: tuple[SweepRow, ...]
    """The effects in the table."""
    axes: tuple[str, ...]
    """Names of the axes of the grid."""
    primary: Primary = "margin"
    """The metric whose tests are corrected for multiple comparisons."""
    correction: Literal["holm", "benjamini_hochberg"] = "holm"
    """Correction of the p values over the targets of one arm, grid point and number of updates. Beside it the table has
    `p_holm`, over all tests of the table."""
    level: float = 0.95
    """Confidence level of the test whose power is reported. The comparisons' intervals have their own level."""


class CellRecordConfig(Config):
    """Settings of the stage `record_cell`."""

    name: str
    """Name of the cell in tables."""
