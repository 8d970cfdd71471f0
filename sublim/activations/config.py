"""What is read of the residual stream: which sites, layers and tokens, and how it is kept."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.inference.config import HfBackend
from sublim.residual.edits import Place, Site

ReadAt = Literal["mean_prompt", "mean_answer", "last_prompt", "last_answer", "all"]
"""A prompt's mean leaves special tokens out (Llama's first token alone is hundreds of times longer than the others); an
answer is all its own tokens, without the end of turn; last_prompt is the token after which the answer begins, special
or not."""


class Reading(Config):
    """Sites and layers to read, and by which kernels."""

    sites: Annotated[tuple[Site, ...], Field(min_length=1)] = ("resid_post",)
    """Sites of each layer."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    """Blocks, counted from 0."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights; auto is bfloat16 on a GPU and float32 without. Sums are float32 always."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """auto is flash_attention_2 where flash-attn is installed and the card can run it, otherwise sdpa."""
    tokens: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Tokens in one pass, padding included; by default what the memory holds."""

    @property
    def places(self) -> list[Place]:
        """Every site of every layer."""
        return [Place(site, layer) for layer in sorted(set(self.layers)) for site in sorted(set(self.sites))]

    @property
    def backend(self) -> HfBackend:
        """The same kernels, as the sampler names them."""
        return HfBackend(dtype=self.dtype, attention=self.attention)

    def resolved(self) -> Self:
        found = self.backend.resolved()
        return self.model_copy(update={"dtype": found.dtype, "attention": found.attention})


class ActivationsConfig(Reading):
    """One model's activations on the rows of a file, kept as tensors."""

    read_at: Annotated[tuple[ReadAt, ...], Field(min_length=1)] = ("mean_answer",)
    """Which tokens; `all` keeps one entry for every token, special ones included."""
    weights_update: int | None = None
    """Which checkpoint of a training payload reads; null for its last."""
    keep: Literal["float32", "bfloat16"] = "float32"
    """Type of the kept tensors."""
    shard: Annotated[int, Field(ge=1)] = 256
    """Rows in a file; memory grows with it and with nothing else, and a crash loses no more than these."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.read_at)) < len(self.read_at):
            raise ValueError("read_at names a position twice")
        return self
