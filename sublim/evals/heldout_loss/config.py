"""What a held-out loss is computed on and how."""

from typing import Annotated, Literal, Self

from pydantic import Field

from sublim.core.config import Config, RunOnly
from sublim.core.hardware import gpu, no_flash


class HeldoutConfig(Config):
    """The loss of one model on rows that nobody trained on."""

    rows: Annotated[int, Field(ge=1)] | None = None
    """The first so many of the held-out rows; nothing: all."""
    max_length: int = Field(default=512, ge=2)
    """Tokens in a row, template included. Longer rows stop the run: none is ever cut."""
    weights_update: Annotated[int, Field(ge=1)] | None = None
    """Which checkpoint of the training payload; nothing: its last."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights; `auto` is bfloat16 on a GPU and float32 without."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """`auto` takes flash-attention where it is installed and the card can run it, otherwise sdpa."""
    micro_batch: RunOnly[int | None] = Field(default=None, ge=1)
    """Rows in one forward pass. Nothing: 8, on a GPU 64."""

    def resolved(self) -> Self:
        dtype = ("bfloat16" if gpu() else "float32") if self.dtype == "auto" else self.dtype
        automatic = "sdpa" if no_flash(dtype) else "flash_attention_2"
        attention = automatic if self.attention == "auto" else self.attention
        return self.model_copy(update={"dtype": dtype, "attention": attention})


class HeldoutLoss(Config):
    """heldout.json: what came out."""

    loss: float | None
    """Nats per answer token, end of turn included, over all rows together; null where it is not finite."""
    rows: int
    tokens: int
    """Answer tokens in all rows."""
    reason: str | None = None
    """Why `loss` is missing."""
