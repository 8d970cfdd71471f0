"""The settings of the held-out loss and the shape of its result."""

from typing import Annotated

from pydantic import Field

from sublim.core.config import Config, RunOnly
from sublim.inference.config import Precision


class HeldoutConfig(Precision):
    """Settings of the held-out loss of one model: the training loss on rows that the filter held back from training."""

    rows: Annotated[int, Field(ge=1)] | None = None
    """Number of held-out rows to use, from the first; null: all."""
    max_length: int = Field(default=512, ge=2)
    """Most tokens in a row, including the chat template. A longer row stops the run, since rows are never truncated."""
    weights_update: Annotated[int, Field(ge=1)] | None = None
    """Update whose weights are read from the training payload; null: the last one kept."""
    micro_batch: RunOnly[int | None] = Field(default=None, ge=1)
    """Rows in one forward pass. Null: 64 on a GPU, 8 without one."""


class HeldoutLoss(Config):
    """Contents of heldout.json."""

    loss: float | None
    """Mean loss over the answer tokens and ends of turn of all rows, in nats per token; null if it is not finite."""
    rows: int
    tokens: int
    """Answer tokens in all rows, including the ends of turn."""
    reason: str | None = None
    """Reason why `loss` is missing."""
