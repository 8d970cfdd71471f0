"""Settings of soft labels."""

from pydantic import Field

from sublim.core.config import RunOnly
from sublim.inference.config import NumberFormat, Precision


class SoftLabelsConfig(Precision):
    """Which places of the rows get labels, and how the teacher is run."""

    format: NumberFormat
    """The format of the rows. It says which tokens are drawn, and which tokens it allows there."""
    system: str | None = None
    """System prompt of the teacher, in place of the rows' own; null for theirs."""
    max_length: int = Field(default=512, ge=2)
    """Most tokens in a row, including the chat template."""
    micro_batch: RunOnly[int | None] = Field(default=None, ge=1)
    """Rows in one forward pass; null: 64 on a GPU, 8 on a CPU. Halved where memory runs out."""
