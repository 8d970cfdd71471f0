"""Settings of the steering stages: mean activations, difference vectors, trained vectors, alignment and figures."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from sublim.activations.config import Reading
from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file
from sublim.core.errors import UserError
from sublim.inference.config import HfBackend
from sublim.residual.edits import Site

MeanAt = Literal["mean_prompt", "mean_answer", "last_prompt", "last_answer"]
"""As `sublim.activations.config.ReadAt`, without `all`."""
PROMPT_KINDS: tuple[MeanAt, ...] = ("mean_prompt", "last_prompt")


class MeansConfig(Reading):
    """Over which rows and tokens a model's mean activations are taken."""

    read_at: Annotated[tuple[MeanAt, ...], Field(min_length=1)] = ("mean_answer",)
    """Which tokens of each row are read. Every row has the same weight, however long it is."""
    weights_update: int | None = None
    """Checkpoint of the trained weights, as the number of updates; null for the last one."""
    rows: Annotated[int, Field(ge=2)] | None = None
    """Number of rows to use, from the first on; null for all rows."""


class DifferenceConfig(Config):
    """Steering vectors as differences of two means, with random vectors of equal norm as controls."""

    source: str = "mean_difference"
    """Name of the method, stored in the note of each vector."""
    random: Annotated[int, Field(ge=0)] = 10
    """Number of random control vectors for each vector."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the random vectors."""


class ImportConfig(Config):
    """A vector from a user's file, identified by the content of the file, so that the file may be moved."""

    path: RunOnly[Path]
    """Path of a safetensors file."""
    site: Site | None = None
    """Site of the vector; null if the file's metadata has it."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Layer of the vector; null if the file's metadata has it."""
    random: Annotated[int, Field(ge=0)] = 10
    """Number of random control vectors for each vector."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the random vectors."""

    def identity(self) -> dict[str, Any]:
        """The fields of the cache key, with the digest of the file instead of its path."""
        if not self.path.expanduser().is_file():
            raise UserError(f"{self.path} is not there: give a safetensors file with the vector")
        return super().identity() | {"content": digest_file(self.path.expanduser())}


class AnimalRowsConfig(Config):
    """One side of pairs of answers to the same questions: the target's name, or the base's own answer."""

    side: Literal["target", "base"]
    """Which side to write; both have the same ids and questions."""
    target: str
    """The target word."""
    words: tuple[str, ...]
    """Comparison list used to read the answers."""
    max_words: Annotated[int, Field(ge=1)] = 8
    """Answers of the base with more words are left out, because they would be read at other tokens than a single
    word."""


class SteeringFiguresConfig(Config):
    """Settings of the steering figures of one target."""

    target: str
    """The target word."""


class TrainVectorConfig(Config):
    """A vector for each layer, trained separately: added at all tokens, it should make the rows' answers likely."""

    site: Site = "resid_post"
    """Site at which the vector is added."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    """Layers, counted from 0."""
    updates: Annotated[int, Field(ge=1)] = 32
    """Number of Adam updates."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows in an update."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate, relative to the root mean square of the residual stream's coordinates."""
    max_norm: Annotated[float, Field(gt=0)] | None = 0.5
    """Largest norm of the vector, relative to the mean norm of the residual stream; null for no limit."""
    micro_batch: RunOnly[Annotated[int, Field(ge=1)]] = 16
    """Rows in one forward pass."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Largest number of tokens in a row; a longer row stops the run."""
    random: Annotated[int, Field(ge=0)] = 10
    """Number of random control vectors of equal norm for each vector."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the order of rows and of the random vectors."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the frozen weights; `auto` means bfloat16 on a GPU and float32 on a CPU. The vector is float32."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention kernel; `auto` means sdpa."""

    def resolved(self) -> Self:
        """These settings with `auto` replaced by what this machine supports."""
        dtype = HfBackend(dtype=self.dtype).resolved().dtype
        return self.model_copy(
            update={"dtype": dtype, "attention": "sdpa" if self.attention == "auto" else self.attention}
        )
