"""Configs of sparse autoencoders (SAEs): their source, training, note and quality. Torch-free."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file, digest_files
from sublim.inference.config import HfBackend
from sublim.residual.edits import Place, Site
from sublim.sae.folder import CONFIG, WEIGHTS, check_folder


class PretrainedSae(Config):
    """A published SAE, as listed by SAELens."""

    kind: Literal["pretrained"] = "pretrained"
    release: str
    """Release in SAELens' list, such as gemma-scope-9b-it-res-canonical or gpt2-small-res-jb."""
    id: str
    """Id within the release, such as layer_9/width_16k/canonical or blocks.8.hook_resid_pre."""
    other_model: bool = False
    """Allow use on a model with another name, such as the instruction-tuned version of the model it was trained on."""


class FolderSae(Config):
    """An SAE on this machine in SAELens' format, identified by the content of its files."""

    kind: Literal["folder"] = "folder"
    path: RunOnly[Path]
    """Path of the folder with cfg.json and sae_weights.safetensors."""
    other_model: bool = False
    """Allow use on a model with another name."""

    def identity(self) -> dict[str, Any]:
        """The identity fields, with the digest of the files in place of the path."""
        folder = self.path.expanduser()
        check_folder(folder)
        files = {name: digest_file(folder / name) for name in (CONFIG, WEIGHTS)}
        return super().identity() | {"content": digest_files(files)}


SaeSource = Annotated[PretrainedSae | FolderSae, Field(discriminator="kind")]


class ImportSaeConfig(Config):
    """Which SAE is imported."""

    source: SaeSource
    """Source of the SAE."""


class SaeNote(Config):
    """Description of an SAE, stored beside its weights as sae.json."""

    site: Site
    """Site in the block that is read, such as resid_post (the residual stream after the block)."""
    layer: int
    """Index of the block, counted from 0."""
    d_in: int
    """Width of the residual stream."""
    d_sae: int
    """Number of features."""
    architecture: str
    """Architecture, such as standard, topk or jumprelu."""
    source: str
    """Release and id of a published SAE, `folder`, or `trained`."""
    model: str | None
    """Name of the model it was trained on, from its config."""
    base: str | None = None
    """Identity of that model's weights, if the SAE was trained by sublim."""
    other_model: bool = False
    """Whether the user has allowed use on a model with another name."""
    centered: bool = False
    """Whether it was trained on a stream with the mean over the width subtracted (TransformerLens'
    center_writing_weights). The mean is then subtracted before encoding."""
    neuronpedia: str | None = None
    """Id of its labels on Neuronpedia, such as gemma-2-9b-it/9-gemmascope-res-16k."""

    @property
    def place(self) -> Place:
        """Site and layer at which it reads."""
        return Place(self.site, self.layer)

    @property
    def name(self) -> str:
        """Its name in the names of files with its features, such as resid_post-9."""
        return f"{self.site}-{self.layer}"


class StreamConfig(Config):
    """How the model is run to read the residual stream for an SAE."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the model's weights. auto: bfloat16 on a GPU, otherwise float32."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel. auto: flash_attention_2 if flash-attn is installed and the GPU supports it, otherwise sdpa."""

    def resolved(self) -> Self:
        """The config with `auto` replaced by what this machine supports."""
        found = HfBackend(dtype=self.dtype, attention=self.attention).resolved()
        return self.model_copy(update={"dtype": found.dtype, "attention": found.attention})


class StandardSae(Config):
    """ReLU activations with an L1 penalty."""

    kind: Literal["standard"] = "standard"
    l1: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the L1 penalty, for activations scaled to a mean norm of √d_in."""


class TopKSae(Config):
    """TopK: only the k largest features of each token are active. An auxiliary loss revives dead features."""

    kind: Literal["topk"] = "topk"
    k: Annotated[int, Field(ge=1)] = 32
    """Number of active features of a token."""


class JumpReluSae(Config):
    """JumpReLU: a learned threshold for each feature, and an L0 penalty on the number of active features."""

    kind: Literal["jumprelu"] = "jumprelu"
    l0: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the L0 penalty."""
    bandwidth: Annotated[float, Field(gt=0)] = 0.05
    """Bandwidth of the kernel that gives thresholds a gradient."""
    threshold: Annotated[float, Field(ge=0)] = 0.01
    """Initial value of the thresholds."""


class TrainSaeConfig(StreamConfig):
    """Training of an SAE on the residual stream of a model."""

    site: Site = "resid_post"
    """Site in the block that is read, such as resid_post (the residual stream after the block)."""
    layer: Annotated[int, Field(ge=0)]
    """Index of the block, counted from 0."""
    features: Annotated[int, Field(ge=1)]
    """Number of features."""
    architecture: Annotated[StandardSae | TopKSae | JumpReluSae, Field(discriminator="kind")] = TopKSae()
    """Activation function and sparsity penalty."""
    tokens: Annotated[int, Field(ge=1)]
    """Number of tokens to train on. Texts with fewer tokens are read repeatedly; the manifest notes the passes."""
    batch: Annotated[int, Field(ge=1)] = 1024
    """Tokens in an optimiser step."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate of Adam. Over the last fifth of the steps it falls to zero."""
    warmup: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the steps over which the learning rate and the penalty rise from zero."""
    block: Annotated[int, Field(ge=1)] = 32_768
    """Tokens that are read and shuffled together. Memory grows with it; training is saved after each block."""
    dead_after: Annotated[int, Field(ge=1)] = 50
    """Steps without being active after which a feature counts as dead, so that the auxiliary loss revives it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights and of the order of texts and tokens."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.block < self.batch or self.tokens < self.batch:
            raise ValueError("`block` and `tokens` must be at least `batch`")
        if isinstance(self.architecture, TopKSae) and self.architecture.k > self.features:
            raise ValueError("`k` must be at most `features`")
        return self


class QualityConfig(StreamConfig):
    """Measuring an SAE on held-out texts."""

    tokens: Annotated[int, Field(ge=1)] = 20_000
    """Number of tokens to measure on. Whole texts are used until they have so many, or until the texts end."""
    chunk: RunOnly[Annotated[int, Field(ge=1)]] = 16
    """Texts in one forward pass, whose logits are all in memory."""


class Quality(Config):
    """How well an SAE reconstructs the residual stream."""

    site: Site
    layer: int
    d_sae: int
    tokens: int
    """Number of tokens measured, without special tokens and those that a template puts before every chat."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − mean‖² over those tokens."""
    l0: float
    """Mean number of active features of a token."""
    dead: float
    """Share of the features that are active at none of those tokens."""
    ce: float
    """Mean cross-entropy of the next token, in nats, of the unchanged model."""
    ce_spliced: float
    """The same with the stream replaced by its reconstruction."""
    ce_zero: float
    """The same with the stream replaced by zeros."""
    ce_mean: float
    """The same with the stream replaced by its mean over those tokens."""
    ce_recovered: float
    """(ce_zero − ce_spliced) / (ce_zero − ce): recovered loss relative to zeros, as in SAELens and Gemma Scope."""
    ce_recovered_mean: float
    """(ce_mean − ce_spliced) / (ce_mean − ce): relative to the mean, which is a harder baseline."""
