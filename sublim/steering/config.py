"""The configs of the steering stages: mean activations, difference vectors, trained vectors, alignment and figures."""

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
"""As in `sublim.activations.config.ReadAt`, less what is no mean over rows."""
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


class EasConfig(Config):
    """Whose vectors are compared with the teacher's, over training."""

    updates: Annotated[tuple[int, ...], Field(min_length=1)]
    """Checkpoints, as updates."""
    pairs: Annotated[int, Field(ge=1)]
    """Students, each with its paired control."""
    random: Annotated[int, Field(ge=10)] = 10
    """Random directions that the cosines are set against."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the random directions."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of repetitions in which an interval covers the truth."""


class Cosine(Config):
    """A cosine over the pairs."""

    mean: float
    per_pair: list[float]
    low: float | None
    """Paired t over the pairs; null with one."""
    high: float | None


class Eas(Config):
    """What one place and checkpoint show."""

    name: str
    """Place and tokens, as in `resid_post/14/mean_answer`."""
    layer: int
    update: int
    student: Cosine
    """v_student (student minus base) with v_teacher (teacher minus base)."""
    control: Cosine
    """The same for the paired control: what being trained on any numbers does."""
    difference: Cosine
    """v_student minus v_control with v_teacher."""
    random: list[float]
    """Random directions with v_teacher."""
    student_length: float
    """Length of v_student as a share of the stream's, mean over the pairs."""
    teacher_length: float


class EasTable(Config):
    """eas.json."""

    rows: list[Eas]
    level: float


class SteeringFiguresConfig(Config):
    """Figures for one target."""

    target: str
    """The word."""


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
