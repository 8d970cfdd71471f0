"""A vector that is trained, rather than read: which place it acts on and how it is found."""

from typing import Annotated, Literal, Self

from pydantic import Field

from sublim.config import Config, RunOnly
from sublim.inference import HfBackend
from sublim.steering_config import Site


class TrainVectorConfig(Config):
    """One vector for each layer, found by itself: added at all tokens, it makes the rows' answers likeliest."""

    site: Site = "resid_post"
    """Where it is added."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    """Blocks, counted from 0."""
    updates: Annotated[int, Field(ge=1)] = 32
    """Steps of Adam."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows in a step."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Length of Adam's step in every coordinate, as a share of the stream's root mean square there."""
    max_norm: Annotated[float, Field(gt=0)] | None = 0.5
    """Longest it may become, as a share of the stream's own length; null for any length."""
    micro_batch: RunOnly[Annotated[int, Field(ge=1)]] = 16
    """Rows in one pass."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in a row; longer ones stop the run."""
    random: Annotated[int, Field(ge=0)] = 10
    """Random vectors of equal norm beside each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the order of the rows and the random vectors."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights; auto is bfloat16 on a GPU and float32 without. The vector is float32."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """auto is sdpa."""

    def resolved(self) -> Self:
        dtype = HfBackend(dtype=self.dtype).resolved().dtype
        return self.model_copy(
            update={"dtype": dtype, "attention": "sdpa" if self.attention == "auto" else self.attention}
        )
