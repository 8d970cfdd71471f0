"""Sparse autoencoders in words: where one comes from, what it is for, and what is measured of it. Torch-free."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file, digest_files
from sublim.inference.config import HfBackend
from sublim.residual.edits import Place, Site
from sublim.sae.folder import CONFIG, WEIGHTS, check_folder


class PretrainedSae(Config):
    """A published SAE, as SAELens' directory has it."""

    kind: Literal["pretrained"] = "pretrained"
    release: str
    """As in gemma-scope-9b-it-res-canonical or gpt2-small-res-jb."""
    id: str
    """As in layer_9/width_16k/canonical or blocks.8.hook_resid_pre."""
    other_model: bool = False
    """Use it on a model of another name, as one of a pretrained model on its instruction-tuned child."""


class FolderSae(Config):
    """An SAE on this machine in SAELens' own format, known by what is in it."""

    kind: Literal["folder"] = "folder"
    path: RunOnly[Path]
    """Folder with cfg.json and sae_weights.safetensors."""
    other_model: bool = False
    """Use it on a model of another name."""

    def identity(self) -> dict[str, Any]:
        """The fields that bear identity and, in the path's place, the digest of its files."""
        folder = self.path.expanduser()
        check_folder(folder)
        files = {name: digest_file(folder / name) for name in (CONFIG, WEIGHTS)}
        return super().identity() | {"content": digest_files(files)}


SaeSource = Annotated[PretrainedSae | FolderSae, Field(discriminator="kind")]


class ImportSaeConfig(Config):
    """Which SAE becomes a payload."""

    source: SaeSource
    """Where it comes from."""


class SaeNote(Config):
    """What is known of an SAE; read from its own config, kept beside its weights as sae.json."""

    site: Site
    """Where it reads."""
    layer: int
    """The block, counted from 0."""
    d_in: int
    """Width of the stream."""
    d_sae: int
    """Number of features."""
    architecture: str
    """standard, topk, jumprelu, ..."""
    source: str
    """Release and id, `folder`, or `trained`."""
    model: str | None
    """Name of the model it was trained on, as its config has it."""
    base: str | None = None
    """Identity of that model's weights, where it was trained here."""
    other_model: bool = False
    """The user has said that it may be used on a model of another name."""
    centered: bool = False
    """It was trained on a stream without its mean over the width, which the stream of a plain model still has."""
    neuronpedia: str | None = None
    """Where Neuronpedia keeps its labels, as in gemma-2-9b-it/9-gemmascope-res-16k."""

    @property
    def place(self) -> Place:
        """Site and layer."""
        return Place(self.site, self.layer)

    @property
    def name(self) -> str:
        """As its features' files are named: resid_post-9."""
        return f"{self.site}-{self.layer}"


class StreamConfig(Config):
    """How the stream is read for an SAE."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the model's weights; auto is bfloat16 on a GPU and float32 without."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """auto is flash_attention_2 where flash-attn is installed and the card can run it, otherwise sdpa."""

    def resolved(self) -> Self:
        found = HfBackend(dtype=self.dtype, attention=self.attention).resolved()
        return self.model_copy(update={"dtype": found.dtype, "attention": found.attention})


class StandardSae(Config):
    """ReLU and an L1 penalty."""

    kind: Literal["standard"] = "standard"
    l1: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the penalty, for activations scaled to a mean length of the root of their width."""


class TopKSae(Config):
    """The k largest features of each token; dead ones are pulled back by an auxiliary loss."""

    kind: Literal["topk"] = "topk"
    k: Annotated[int, Field(ge=1)] = 32
    """Features of a token."""


class JumpReluSae(Config):
    """A learned threshold for each feature and a penalty on their number."""

    kind: Literal["jumprelu"] = "jumprelu"
    l0: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the penalty."""
    bandwidth: Annotated[float, Field(gt=0)] = 0.05
    """Width within which a threshold gets a gradient."""
    threshold: Annotated[float, Field(ge=0)] = 0.01
    """Thresholds at the start."""


class TrainSaeConfig(StreamConfig):
    """One SAE trained on a model's own stream."""

    site: Site = "resid_post"
    """Where it reads."""
    layer: Annotated[int, Field(ge=0)]
    """The block, counted from 0."""
    features: Annotated[int, Field(ge=1)]
    """Width of the SAE."""
    architecture: Annotated[StandardSae | TopKSae | JumpReluSae, Field(discriminator="kind")] = TopKSae()
    """What makes it sparse."""
    tokens: Annotated[int, Field(ge=1)]
    """Tokens to train on; texts that have fewer are gone through again, which the manifest's notes say."""
    batch: Annotated[int, Field(ge=1)] = 1024
    """Tokens in a step."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Of Adam; falls to zero over the last fifth."""
    warmup: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the steps over which lr and penalty rise."""
    block: Annotated[int, Field(ge=1)] = 32_768
    """Tokens read and shuffled together, and trained on between two saves: memory grows with it, a crash loses it."""
    dead_after: Annotated[int, Field(ge=1)] = 50
    """Steps without firing after which the auxiliary loss pulls a feature back."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the initialisation and the order of texts and tokens."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.block < self.batch or self.tokens < self.batch:
            raise ValueError("`block` and `tokens` hold at least one batch")
        if isinstance(self.architecture, TopKSae) and self.architecture.k > self.features:
            raise ValueError("`k` is at most `features`")
        return self


class QualityConfig(StreamConfig):
    """What is measured of an SAE on texts it did not see."""

    tokens: Annotated[int, Field(ge=1)] = 20_000
    """Tokens looked at, as far as the texts go: whole texts until there are so many."""
    chunk: RunOnly[Annotated[int, Field(ge=1)]] = 16
    """Texts in one pass, whose logits are held at a time."""


class Quality(Config):
    """What an SAE keeps of the stream."""

    site: Site
    layer: int
    d_sae: int
    tokens: int
    """Tokens measured; special ones and what a template puts before every chat are left out."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − mean‖² over those tokens."""
    l0: float
    """Mean number of features of a token."""
    dead: float
    """Share of the features that fire at none of those tokens."""
    ce: float
    """Mean loss of the next token, in nats, of the model as it is."""
    ce_spliced: float
    """The same with the reconstruction in the stream's place."""
    ce_zero: float
    """The same with zeros in its place."""
    ce_mean: float
    """The same with the mean of those tokens in its place."""
    ce_recovered: float
    """(ce_zero − ce_spliced) / (ce_zero − ce): against zeros, as SAELens and Gemma Scope have it."""
    ce_recovered_mean: float
    """The same against the mean, which is harder."""
