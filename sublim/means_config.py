"""Mean activations of a reader on rows, and the vectors that are differences of two such means."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sublim.activations_config import Reading
from sublim.config import Config, RunOnly
from sublim.digest import digest_file
from sublim.errors import UserError
from sublim.steering_config import Site

MeanAt = Literal["mean_prompt", "mean_answer", "last_prompt", "last_answer"]
"""As in `sublim.activations_config.ReadAt`, less what is no mean over rows."""
PROMPT_KINDS: tuple[MeanAt, ...] = ("mean_prompt", "last_prompt")


class MeansConfig(Reading):
    """What one reader's mean is over."""

    read_at: Annotated[tuple[MeanAt, ...], Field(min_length=1)] = ("mean_answer",)
    """Which tokens of each row; every row counts the same, however long."""
    weights_update: int | None = None
    """Which checkpoint of a training payload reads; null for its last."""
    rows: Annotated[int, Field(ge=2)] | None = None
    """Use the first so many rows; null for all."""


class DifferenceConfig(Config):
    """Vectors from the means of two sides, with random ones of equal length as their controls."""

    source: str = "mean_difference"
    """What to call them."""
    random: Annotated[int, Field(ge=0)] = 10
    """Random vectors beside each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the random vectors."""


class ImportConfig(Config):
    """A vector of the user's own, known by what is in its file: moving the file changes nothing."""

    path: RunOnly[Path]
    """A safetensors file."""
    site: Site | None = None
    """Its site; null where the file's metadata says it."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Its layer; null where the file's metadata says it."""
    random: Annotated[int, Field(ge=0)] = 10
    """Random vectors beside each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the random vectors."""

    def identity(self) -> dict[str, Any]:
        """The fields that bear identity and, in the path's place, the digest of the file."""
        if not self.path.expanduser().is_file():
            raise UserError(f"{self.path} is not there: give a safetensors file with the vector")
        return super().identity() | {"content": digest_file(self.path.expanduser())}


class AnimalRowsConfig(Config):
    """One side of pairs of answers to the same questions: the target's name, or what the base says by itself."""

    side: Literal["target", "base"]
    """Whose answers to write; both sides have the same ids and questions."""
    target: str
    """The word."""
    words: tuple[str, ...]
    """The comparison list that answers are read with."""
    max_words: Annotated[int, Field(ge=1)] = 8
    """Longer answers of the base are left out: they would be read at other tokens than a word."""
