"""The settings of a steering run: where its vector comes from, the grid, and what is asked at each point."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flows.pipeline.study_config import PipelineStudyConfig
from sublim.core.config import Config
from sublim.evals.mmlu_pro.config import MmluProConfig
from sublim.residual.edits import Site, Tokens
from sublim.steering.config import PROMPT_KINDS, MeanAt

Layer = Annotated[int, Field(ge=0)]
"""A block, counted from 0."""


class NumbersVector(Config):
    """The base's mean activations on the teacher's number lists minus those on its own lists, for the same prompts."""

    kind: Literal["numbers"] = "numbers"
    rows: Annotated[int, Field(ge=2)] | None = None
    """Use this many pairs of lists, the first; null for all."""


class AnimalVector(Config):
    """Mean activations on the target's name minus those on the base's own answers, for questions that the evaluation
    does not ask."""

    kind: Literal["animal"] = "animal"
    samples: Annotated[int, Field(ge=1)] = 2
    """How many answers the base gives to each question."""


class TrainedVector(Config):
    """A vector trained to raise the log-prob of the teacher's number lists."""

    kind: Literal["trained"] = "trained"
    updates: Annotated[int, Field(ge=1)] = 32
    """Number of Adam steps."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows in each step."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate, as a share of the residual stream's root mean square."""
    max_norm: Annotated[float, Field(gt=0)] | None = 0.5
    """Greatest norm of the vector, as a share of the residual stream's norm; null for no limit."""


class FileVector(Config):
    """A vector from a file."""

    kind: Literal["file"] = "file"
    path: str
    """A safetensors file."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The layer it belongs to; null if the file's metadata say it."""


class GridConfig(Config):
    """The grid of a sweep: every strength and every choice of tokens is tried at every layer."""

    layers: tuple[Layer, ...]
    """Layers that are steered one at a time."""
    together: tuple[tuple[Layer, ...], ...] = ()
    """Groups of layers that are steered together, each layer with its own vector."""
    strengths: Annotated[tuple[float, ...], Field(min_length=1)]
    """Factors by which the vector is multiplied."""
    scale: Literal["raw", "relative"] = "raw"
    """raw: the vector keeps its own length. relative: at strength 1 it is as long as the residual stream was on average
    where it was read."""
    tokens: Annotated[tuple[Tokens, ...], Field(min_length=1)] = ("all",)
    """The tokens at whose positions the vector is added."""
    samples: Annotated[int, Field(ge=0)] | None = None
    """Answers sampled for each question at each point; null for as many as in the study's evaluation."""
    random: Annotated[int, Field(ge=0)] = 10
    """Random vectors of the same norm that are tried at each layer for comparison."""
    random_strengths: tuple[float, ...] | None = None
    """Strengths at which random vectors are tried; null for all."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if not self.layers and not self.together:
            raise ValueError("name at least one layer")
        if any(strength not in self.strengths for strength in self.random_strengths or ()):
            raise ValueError("`random_strengths` must be among `strengths`")
        return self

    @property
    def all_layers(self) -> tuple[int, ...]:
        """Every layer that needs a vector."""
        return tuple(sorted({*self.layers, *(layer for group in self.together for layer in group)}))


class MechanismConfig(Config):
    """Whether students learned the direction of the vector: alignment, sufficiency and necessity, layer by layer."""

    layers: tuple[Layer, ...] | None = None
    """The layers to measure; null for all."""
    rows: Annotated[int, Field(ge=2)] = 256
    """Rows of the control's lists on which the activations of all models are read."""
    read_at: Literal["mean_answer", "last_answer"] = "mean_answer"
    """The tokens of answers at which activations are read for alignment above the control, sufficiency and necessity.
    The paper's alignment is read at the same rows' prompts."""
    random: Annotated[int, Field(ge=10)] = 10
    """Random directions that every measurement is compared with; each holds next to nothing of a student's change."""
    pairs: Annotated[int, Field(ge=1)] = 1
    """How many pairs of student and control are measured layer by layer."""
    sufficiency: bool = True
    """Sufficiency: add each student's vector to the base, layer by layer."""
    replace: bool = True
    """Necessity: replace the student's component along its vector by the base's, layer by layer, and as controls that
    along v_control, other teachers' vectors, principal components of its change, and random directions."""
    rewrite: tuple[Layer, ...] = ()
    """Necessity in the teacher: layers at which its vector is projected out while it writes lists for new students."""
    rewrite_seeds: tuple[int, ...] = (0,)
    """Seeds of these new students; they must be among the study's."""


class SteeringFlowConfig(PipelineStudyConfig):
    """One steering study: a vector for a target, what it does at each strength, and whether students learned it."""

    mode: Annotated[NumbersVector | AnimalVector | TrainedVector | FileVector, Field(discriminator="kind")] = (
        AnimalVector()
    )
    """How the vector is made."""
    site: Site = "resid_post"
    """The place in a block at which the vector is read and added."""
    read_at: MeanAt = "mean_answer"
    """The tokens at which activations are read for the vector."""
    grid: GridConfig
    """The grid of the sweep."""
    mmlu_pro: MmluProConfig | None = None
    """Also ask questions of MMLU-Pro at every point of the target's vector, to see what steering costs; null for
    none."""
    mechanism: MechanismConfig | None = None
    """Also measure the mechanism; null for none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random vectors."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode.kind in ("numbers", "animal") and self.read_at in PROMPT_KINDS:
            raise ValueError("both sides have the same prompts: set read_at to mean_answer or last_answer")
        if self.mechanism and not set(self.mechanism.rewrite_seeds) <= set(self.study.seeds):
            raise ValueError("`rewrite_seeds` must be among the study's `seeds`, which have the controls")
        return self
