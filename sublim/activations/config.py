"""Settings of reading activations: sites, layers, tokens, and the data type that is stored."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import RunOnly
from sublim.inference.config import Precision
from sublim.residual.edits import Place, Site

ReadAt = Literal["mean_prompt", "mean_answer", "last_prompt", "last_answer", "all"]
"""Which tokens are read. mean_prompt: the mean over the prompt without special tokens (the norm at Llama's first token
is hundreds of times larger than elsewhere). mean_answer: the mean over the answer without its end of turn. last_prompt:
the token after which the answer begins, special or not. last_answer: the last token before the end of turn. all: every
token."""


class Reading(Precision):
    """Sites and layers to read, and how the model is run. Sums are always in float32."""

    sites: Annotated[tuple[Site, ...], Field(min_length=1)] = ("resid_post",)
    """Sites to read in each layer."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    """Layers, counted from 0."""
    tokens: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Tokens in one forward pass, including padding; by default as many as the memory allows."""

    @property
    def places(self) -> list[Place]:
        """Every site of every layer."""
        return [Place(site, layer) for layer in sorted(set(self.layers)) for site in sorted(set(self.sites))]


class ActivationsConfig(Reading):
    """Stores a model's activations on the rows of a file."""

    read_at: Annotated[tuple[ReadAt, ...], Field(min_length=1)] = ("mean_answer",)
    """Which tokens to read; `all` stores an entry for every token, including special ones."""
    weights_update: int | None = None
    """Checkpoint of the trained weights, as the number of updates; null for the last one."""
    keep: Literal["float32", "bfloat16"] = "float32"
    """Data type of the stored tensors."""
    shard: Annotated[int, Field(ge=1)] = 256
    """Rows in one file. It determines the memory that is needed and how many rows a crash can lose."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.read_at)) < len(self.read_at):
            raise ValueError("read_at names a position twice")
        return self
