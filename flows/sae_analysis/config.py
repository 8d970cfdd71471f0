"""The settings of an SAE analysis: the study, the SAEs and their texts, and what is compared."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flows.pipeline.study_config import PipelineStudyConfig
from sublim.core.config import Config
from sublim.features.config import FeatureAt
from sublim.features.labels.config import LabelsConfig
from sublim.inference.config import Backend
from sublim.probes.config import ProbesConfig
from sublim.residual.edits import Site
from sublim.sae.config import JumpReluSae, StandardSae, TopKSae


class ChatTexts(Config):
    """Chats that the base writes on bundled topics, animals and numbers among them."""

    kind: Literal["chats"] = "chats"
    chats: Annotated[int, Field(ge=1)]
    """Number of chats."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Most tokens in an answer."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampling and of the order of the prompts."""


class NumberTexts(Config):
    """The study's number lists, of every teacher and of the base."""

    kind: Literal["rows"] = "rows"


class FileTexts(Config):
    """Texts from a file."""

    kind: Literal["file"] = "file"
    path: Path
    """.txt with one text a line, .jsonl with `text` or `prompt` and `answer`, or .parquet with the same columns."""


class TrainedSaes(Config):
    """SAEs trained here, one for each layer."""

    kind: Literal["train"] = "train"
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    """Blocks, counted from 0."""
    site: Site = "resid_post"
    """The place in a block whose activations they encode."""
    features: Annotated[int, Field(ge=1)]
    """Number of features of each SAE."""
    architecture: Annotated[StandardSae | TopKSae | JumpReluSae, Field(discriminator="kind")] = TopKSae()
    """The architecture, which is what makes features sparse."""
    tokens: Annotated[int, Field(ge=1)]
    """Tokens to train on."""
    batch: Annotated[int, Field(ge=1)] = 1024
    """Tokens in each step."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate of Adam."""
    block: Annotated[int, Field(ge=1)] = 32_768
    """Tokens whose activations are read and shuffled together."""
    dead_after: Annotated[int, Field(ge=1)] = 50
    """After so many steps without firing, the auxiliary loss trains a feature again."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initialisation and of the order of the tokens."""


class PretrainedSaes(Config):
    """Published SAEs of one release."""

    kind: Literal["pretrained"] = "pretrained"
    release: str
    """Name of the release in SAELens, such as gemma-scope-9b-it-res-canonical."""
    ids: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ids of the SAEs, one for each layer, such as layer_9/width_16k/canonical."""
    other_model: bool = False
    """Use the SAEs even if they were trained on a model with another name."""


class FolderSaes(Config):
    """SAEs from folders in SAELens' format."""

    kind: Literal["folder"] = "folder"
    paths: Annotated[tuple[Path, ...], Field(min_length=1)]
    """One folder for each layer."""
    other_model: bool = False
    """Use the SAEs even if they were trained on a model with another name."""


class SaeFlowConfig(PipelineStudyConfig):
    """One analysis: which features differ between a teacher's lists, a teacher or a student and their controls."""

    saes: Annotated[TrainedSaes | PretrainedSaes | FolderSaes, Field(discriminator="kind")]
    """The SAEs."""
    texts: Annotated[
        tuple[Annotated[ChatTexts | NumberTexts | FileTexts, Field(discriminator="kind")], ...], Field(min_length=1)
    ] = (NumberTexts(),)
    """Texts on which SAEs are trained; the held-out part measures their quality."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the prompts that is held out."""
    quality_tokens: Annotated[int, Field(ge=1)] = 20_000
    """Number of held-out tokens on which quality is measured."""
    tokens: FeatureAt = "mean"
    """Which activations of an answer are used: those at its last token, the mean over its tokens, or all."""
    rows: Annotated[int, Field(ge=2)] | None = None
    """Use this many number lists, the first; null for all."""
    top: Annotated[int, Field(ge=1)] | None = None
    """Keep only this many of the strongest features of a row or token; null for all that fire."""
    teachers: bool = True
    """Also compare each fine-tuned teacher with the base on the control's rows."""
    pairs: Annotated[int, Field(ge=0)] = 1
    """Also compare this many students with their controls on the control's rows."""
    contexts: tuple[Literal["plain", "chat"], ...] = ("plain", "chat")
    """The contexts in which words are read to find the target word's own features."""
    size: Annotated[int, Field(ge=1)] = 30
    """For overlaps: how many features a contrast's set has, the significant ones with the largest effects."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """False discovery rate of the features called significant."""
    shown: Annotated[int, Field(ge=1)] = 15
    """How many features of each contrast the report shows with examples."""
    neuronpedia: LabelsConfig | None = None
    """Fetch labels from Neuronpedia for SAEs that have some there; null for no labels. Model and source are filled
    in."""
    annotator: Backend | None = None
    """The model that sorts labels into animals, numbers, opinion and none; null for no sorting."""
    probes: ProbesConfig | None = None
    """Also fit linear probes that tell each teacher's lists from the base's; null for none."""
    probe_layers: tuple[int, ...] | None = None
    """Layers of the probes; null for those of the SAEs."""
    labels: dict[int, str] = Field(default_factory=dict)
    """Your own labels by layer: a folder, or at least six digits of an artifact's key, with labels.parquet (feature,
    description, chosen) or annotations.parquet (feature, description, category)."""
    vectors: bool = True
    """Also find the features whose decoder rows point along each target's steering vector."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pairs > len(self.study.seeds):
            raise ValueError("`pairs` must not exceed the number of the study's `seeds`")
        return self
