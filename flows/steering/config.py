"""Everything a steering run can be told: where its vector comes from, the grid, and what is asked at each point."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from flows.pipeline.config import PipelineConfig
from flows.runs.settings import build
from sublim.core.config import Config, RunOnly
from sublim.evals.mmlu_pro.config import MmluProConfig
from sublim.residual.edits import Site, Tokens
from sublim.steering.config import PROMPT_KINDS, MeanAt

Layer = Annotated[int, Field(ge=0)]
"""A block, counted from 0."""


class NumbersVector(Config):
    """The teacher's number lists against the base's for the same prompts, both read by the base."""

    kind: Literal["numbers"] = "numbers"
    rows: Annotated[int, Field(ge=2)] | None = None
    """Use the first so many pairs; null for all that the study makes."""


class AnimalVector(Config):
    """The target's name against the base's own answers to questions that the evaluation does not ask."""

    kind: Literal["animal"] = "animal"
    samples: Annotated[int, Field(ge=1)] = 2
    """Answers of the base for each question."""


class TrainedVector(Config):
    """A vector trained to make the teacher's number lists likely."""

    kind: Literal["trained"] = "trained"
    updates: Annotated[int, Field(ge=1)] = 32
    """Steps of Adam."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows in a step."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """As a share of the stream's root mean square."""
    max_norm: Annotated[float, Field(gt=0)] | None = 0.5
    """Longest it may become, as a share of the stream's length; null for any."""


class FileVector(Config):
    """A vector of the user's own."""

    kind: Literal["file"] = "file"
    path: str
    """A safetensors file."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Its layer; null where the file's metadata says it."""


class GridConfig(Config):
    """What is tried; strengths and tokens are crossed with the layers."""

    layers: tuple[Layer, ...]
    """Layers that are steered alone."""
    together: tuple[tuple[Layer, ...], ...] = ()
    """Groups of layers that are steered at once, each with its own vector."""
    strengths: Annotated[tuple[float, ...], Field(min_length=1)]
    """Times the vector."""
    scale: Literal["raw", "relative"] = "raw"
    """relative: a strength of 1 adds as much length as the stream itself has where the vector was read."""
    tokens: Annotated[tuple[Tokens, ...], Field(min_length=1)] = ("all",)
    """Which tokens are touched."""
    samples: Annotated[int, Field(ge=0)] | None = None
    """Written answers for each question at each point; null: as many as in the study's evaluation."""
    random: Annotated[int, Field(ge=0)] = 10
    """Random vectors of equal norm beside each single layer."""
    random_strengths: tuple[float, ...] | None = None
    """Strengths at which the random vectors are tried too; null for all."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if not self.layers and not self.together:
            raise ValueError("name at least one layer")
        if any(strength not in self.strengths for strength in self.random_strengths or ()):
            raise ValueError("`random_strengths` are some of `strengths`")
        return self

    @property
    def all_layers(self) -> tuple[int, ...]:
        """Every layer that needs a vector."""
        return tuple(sorted({*self.layers, *(layer for group in self.together for layer in group)}))


class MechanismConfig(Config):
    """Is what students learned what the vector says? Alignment, sufficiency and both necessities, layer by layer."""

    layers: tuple[Layer, ...] | None = None
    """Layers; null for every one."""
    rows: Annotated[int, Field(ge=2)] = 256
    """Rows of the control's numbers that everybody reads: same text, same tokens."""
    read_at: MeanAt = "mean_answer"
    """Which tokens."""
    random: Annotated[int, Field(ge=10)] = 10
    """Random directions that every measure is set against."""
    pairs: Annotated[int, Field(ge=1)] = 1
    """Students that go through the layers one by one."""
    sufficiency: bool = True
    """Add each student's vector to the base, layer by layer."""
    replace: bool = True
    """Put the base's component along the student's vector into the student, layer by layer."""
    rewrite: tuple[Layer, ...] = ()
    """Layers at which the teacher writes anew with its vector projected out, for new students to learn from."""
    rewrite_seeds: tuple[int, ...] = (0,)
    """Seeds of those students, among the study's."""


class SteeringFlowConfig(Config):
    """One steering study: a vector for a target, what it does at each strength, and whether students learned it."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    study: PipelineConfig
    """Base, teacher, carrier and evaluation; its students are trained only for the mechanism."""
    mode: Annotated[NumbersVector | AnimalVector | TrainedVector | FileVector, Field(discriminator="kind")] = (
        AnimalVector()
    )
    """Where the vector comes from."""
    target: tuple[str, ...] | None = None
    """The word or words; null for the study's."""
    site: Site = "resid_post"
    """Where it is read and added."""
    read_at: MeanAt = "mean_answer"
    """Which tokens it is read from."""
    grid: GridConfig
    """What is tried."""
    mmlu_pro: MmluProConfig | None = None
    """Questions that show what is lost, asked at every point of a true vector; null: none."""
    mechanism: MechanismConfig | None = None
    """The mechanism measures; null: none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the random vectors."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory these settings need; 0: none, a CPU will do."""

    @field_validator("target", mode="before")
    @classmethod
    def _split(cls, target: Any) -> Any:
        return [word.strip() for word in target.split(",")] if isinstance(target, str) else target

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode.kind in ("numbers", "animal") and self.read_at in PROMPT_KINDS:
            raise ValueError("with one reader, prompt tokens do not differ: read_at is mean_answer or last_answer")
        if self.mechanism and not set(self.mechanism.rewrite_seeds) <= set(self.study.seeds):
            raise ValueError("`rewrite_seeds` are some of the study's `seeds`: their controls are trained there")
        return self

    @property
    def pipeline(self) -> PipelineConfig:
        """The study with this run's targets."""
        if self.target is None:
            return self.study
        return build(PipelineConfig, {**self.study.model_dump(), "target": self.target})
