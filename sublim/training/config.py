"""The settings of training: which weights are trained, on what schedule, with which trainer and which labels."""

from importlib.util import find_spec
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.hardware import AMPERE, VOLTA, cpu_multiplies_bfloat16, gpu, no_flash


class Lora(Config):
    """Trains low-rank adapters of the linear layers and freezes the base (LoRA, arXiv 2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=16, gt=0)
    """Numerator of the factor on the adapter's output: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability on the adapter's input during training."""
    rslora: bool = False
    """Use the rank-stabilised scale, alpha / sqrt(rank) (arXiv 2312.03732)."""
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Names of the linear layers that get an adapter in every transformer block."""
    frozen_base: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the frozen base weights; the adapter itself is always float32. `auto` is bfloat16 for a base of
    more than 2 billion parameters whose matrix products are bfloat16 too, and float32 otherwise."""

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class FullWeights(Config):
    """Trains all weights, in float32."""

    kind: Literal["full"] = "full"


class TrainConfig(Config):
    """Settings of one training run. The loss is taken on the tokens of the assistant's turn alone."""

    trainer: Literal["trl", "unsloth"] = "trl"
    """What computes the updates. trl: the Trainer of transformers with peft (trl itself is no longer used; the name is
    part of cache keys). unsloth: unsloth's kernels, for adapters on a GPU only. Rows, labels, order, optimizer and
    number of updates are the same."""
    method: Annotated[Lora | FullWeights, Field(discriminator="kind")] = Lora()
    """Which weights are trained: those of an adapter (`lora`) or all (`full`)."""
    lr: float = Field(default=2e-4, gt=0)
    """Highest learning rate of the schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the rate after the warm-up: constant, or falling to 0 linearly or along half a cosine."""
    warmup_updates: int | None = Field(default=None, ge=0)
    """Number of updates w over which the rate rises linearly: update i, counted from 1, runs at lr * i / w."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Warm-up as a fraction of all updates, rounded up to whole updates. Excludes `warmup_updates`."""
    batch_size: int = Field(default=16, ge=1)
    """Rows in one update of the weights."""
    micro_batch: RunOnly[int | None] = Field(default=None, ge=1)
    """Rows in one forward pass, which does not change the result beyond rounding. Null: as many as fit into memory. The
    number is halved whenever memory runs out."""
    updates: int | None = Field(default=None, ge=1)
    """Number of updates, each of `batch_size` rows. After all rows have been used they are repeated in a new order."""
    epochs: float | None = Field(default=None, gt=0)
    """Number of passes over the rows, instead of `updates`. The last update of a pass may have fewer rows."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decoupled weight decay. It applies to matrices and not to biases and the scales of normalisation."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all parameters, above which it is scaled down. Null: no clipping."""
    max_length: int = Field(default=512, ge=2)
    """Most tokens in a row, including the chat template. A longer row stops the run, since rows are never truncated."""
    seed: int = Field(default=0, ge=0)
    """Seed of the adapter's initial values, of dropout and, unless `order_seed` is set, of the order of the rows."""
    order_seed: int | None = Field(default=None, ge=0)
    """Seed of the order of the rows; null: `seed`."""
    rows: int | None = Field(default=None, ge=1)
    """Number of rows to use, from the first; null: all."""
    keep: tuple[int, ...] = ()
    """Updates, counted from 1, after which the weights are kept. The weights after the last update always are."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of matrix products. bfloat16 is mixed precision: autocast over trained weights in float32. `auto` is
    bfloat16 if the GPU, or the processor if there is no GPU, has instructions for it, and float32 otherwise."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel. `auto` is flash-attention if it is installed and the GPU supports it, and sdpa otherwise. With
    flash-attention the trainer `trl` packs rows into one sequence, so that nothing is spent on padding."""
    cuda_graph: RunOnly[bool] = True
    """On a GPU with sdpa, replay each update as one CUDA graph if the model and the micro-batch allow it."""
    checkpoint_every: RunOnly[int | None] = Field(default=None, ge=1)
    """Updates between the checkpoints from which an interrupted run resumes; null: about one a minute."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError("give either `updates` or `epochs`")
        if self.trainer == "unsloth" and isinstance(self.method, FullWeights):
            raise ValueError("unsloth trains adapters only here: set method.kind to lora, or trainer to trl")
        if self.warmup_updates is not None and self.warmup_fraction is not None:
            raise ValueError("give `warmup_updates` or `warmup_fraction`, not both")
        if any(update < 1 or update > (self.updates or update) for update in self.keep):
            raise ValueError("`keep` takes updates from 1 to the last one")
        return self

    def resolved(self) -> Self:
        """The settings with every `auto` replaced that this machine alone decides: dtype, attention and, with float32
        products, the type of the frozen base."""
        dtype, attention, method = self.dtype, self.attention, self.method
        if dtype == "auto":
            card = gpu()
            halved = cpu_multiplies_bfloat16() if card is None else card.capability >= AMPERE
            dtype = "bfloat16" if halved else "float32"
        if attention == "auto":
            attention = "sdpa" if no_flash(dtype) else "flash_attention_2"
        if isinstance(method, Lora) and method.frozen_base == "auto" and dtype == "float32":
            method = method.model_copy(update={"frozen_base": "float32"})
        return self.model_copy(update={"dtype": dtype, "attention": attention, "method": method})


def no_unsloth() -> str | None:
    """The reason why unsloth cannot train on this machine, or None if it can."""
    card = gpu()
    if card is None:
        return "it needs an NVIDIA GPU"
    if card.capability < VOLTA:
        return f"it needs compute capability 7.0, {card.name} has {card.capability[0]}.{card.capability[1]}"
    if find_spec("unsloth") is None:
        return "it is not installed (pip install -e '.[gpu]' -c constraints.txt)"
    return None


class SoftTrainConfig(TrainConfig):
    """Settings of a training run whose labels are a teacher's probabilities of the allowed tokens at drawn places."""

    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of both distributions. The loss is multiplied by its square (arXiv 1503.02531)."""
