"""Everything an analysis with SAEs can be told: the study, the SAEs and their texts, what is set against what."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from flows.pipeline.config import PipelineConfig
from flows.runs.settings import build
from sublim.core.config import Config, RunOnly
from sublim.features.config import FeatureAt
from sublim.features.labels.config import LabelsConfig
from sublim.inference.config import Backend
from sublim.probes.config import ProbesConfig
from sublim.residual.edits import Site
from sublim.sae.config import JumpReluSae, StandardSae, TopKSae


class ChatTexts(Config):
    """Chats that the base writes itself, on topics of ours; animals and numbers are among them."""

    kind: Literal["chats"] = "chats"
    chats: Annotated[int, Field(ge=1)]
    """How many."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws and the order of the prompts."""


class NumberTexts(Config):
    """The study's own number rows: every target's and the control's."""

    kind: Literal["rows"] = "rows"


class FileTexts(Config):
    """A user's own texts."""

    kind: Literal["file"] = "file"
    path: Path
    """.txt with one text a line, .jsonl with `text` or `prompt` and `answer`, or .parquet with the same columns."""


class TrainedSaes(Config):
    """SAEs trained here, one for each layer."""

    kind: Literal["train"] = "train"
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    """Blocks, counted from 0."""
    site: Site = "resid_post"
    """Where they read."""
    features: Annotated[int, Field(ge=1)]
    """Width of each."""
    architecture: Annotated[StandardSae | TopKSae | JumpReluSae, Field(discriminator="kind")] = TopKSae()
    """What makes them sparse."""
    tokens: Annotated[int, Field(ge=1)]
    """Tokens to train on."""
    batch: Annotated[int, Field(ge=1)] = 1024
    """Tokens in a step."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Of Adam."""
    block: Annotated[int, Field(ge=1)] = 32_768
    """Tokens read and shuffled together."""
    dead_after: Annotated[int, Field(ge=1)] = 50
    """Steps without firing after which the auxiliary loss pulls a feature back."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of initialisation and order."""


class PretrainedSaes(Config):
    """Published SAEs of one release."""

    kind: Literal["pretrained"] = "pretrained"
    release: str
    """As in gemma-scope-9b-it-res-canonical."""
    ids: Annotated[tuple[str, ...], Field(min_length=1)]
    """As in layer_9/width_16k/canonical; one for each layer."""
    other_model: bool = False
    """Use them on a model of another name."""


class FolderSaes(Config):
    """SAEs on this machine in SAELens' format."""

    kind: Literal["folder"] = "folder"
    paths: Annotated[tuple[Path, ...], Field(min_length=1)]
    """A folder for each layer."""
    other_model: bool = False
    """Use them on a model of another name."""


class SaeFlowConfig(Config):
    """One analysis: which features tell a teacher's numbers, a teacher and a student from their controls."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    study: PipelineConfig
    """Base, teachers, carrier and students; its first block and seeds are used, its evaluation is not run."""
    target: tuple[str, ...] | None = None
    """The word or words; null for the study's."""
    saes: Annotated[TrainedSaes | PretrainedSaes | FolderSaes, Field(discriminator="kind")]
    """Whose features."""
    texts: Annotated[
        tuple[Annotated[ChatTexts | NumberTexts | FileTexts, Field(discriminator="kind")], ...], Field(min_length=1)
    ] = (NumberTexts(),)
    """What SAEs are trained on and, held out, what their quality is measured on."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the prompts that no SAE is trained on."""
    quality_tokens: Annotated[int, Field(ge=1)] = 20_000
    """Held-out tokens on which the SAEs' quality is measured."""
    tokens: FeatureAt = "mean"
    """Of a number row's answer: its last token, the mean of its tokens' features, or every token."""
    rows: Annotated[int, Field(ge=2)] | None = None
    """Use the first so many number rows; null for all."""
    top: Annotated[int, Field(ge=1)] | None = None
    """Keep so many features of an entry; null for all that fire."""
    teachers: bool = True
    """Read the control's rows with each fine-tuned teacher too, against the base."""
    pairs: Annotated[int, Field(ge=0)] = 1
    """Read the control's rows with so many students too, each against its control student."""
    contexts: tuple[Literal["plain", "chat"], ...] = ("plain", "chat")
    """Where the target's word and the other words are read for the word's own features."""
    size: Annotated[int, Field(ge=1)] = 30
    """Features of a set when overlaps are counted: the largest effects among the significant ones."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Expected share of false ones among features called significant."""
    shown: Annotated[int, Field(ge=1)] = 15
    """Features shown of each contrast, with example rows."""
    neuronpedia: LabelsConfig | None = None
    """Take labels from Neuronpedia for SAEs that say where theirs are (model and source are put in); null: don't."""
    annotator: Backend | None = None
    """Who sorts the labels of the features shown into animals, numbers, opinion and none; null: nobody."""
    probes: ProbesConfig | None = None
    """Linear probes that tell each target's number rows from the control's; null: none."""
    probe_layers: tuple[int, ...] | None = None
    """Their layers; null for the SAEs'."""
    labels: dict[int, str] = Field(default_factory=dict)
    """By layer, labels of one's own: a folder, or six or more digits of the key of a stage's output, with
    labels.parquet (feature, description, chosen) or annotations.parquet (feature, description, category)."""
    vectors: bool = True
    """Decode each target's steering vector (its numbers minus the control's) into features."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory these settings need; 0: none, a CPU will do."""

    @field_validator("target", mode="before")
    @classmethod
    def _split(cls, target: Any) -> Any:
        return [word.strip() for word in target.split(",")] if isinstance(target, str) else target

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pairs > len(self.study.seeds):
            raise ValueError("`pairs` is at most the number of the study's `seeds`")
        return self

    @property
    def pipeline(self) -> PipelineConfig:
        """The study with this run's targets."""
        if self.target is None:
            return self.study
        return build(PipelineConfig, {**self.study.model_dump(), "target": self.target})
