"""The configs of training: which weights train, on what schedule, with which trainer, and against which labels."""

from importlib.util import find_spec
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.hardware import AMPERE, VOLTA, cpu_multiplies_bfloat16, gpu, no_flash


class Lora(Config):
    """Low-rank adapters beside the frozen linear layers (arXiv 2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=16, gt=0)
    """Numerator of the adapter's scale: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    rslora: bool = False
    """Rank-stabilised scale, alpha / sqrt(rank)."""
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Names of the linear layers that get an adapter, in every block."""
    frozen_base: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen base weights; the adapter is float32 always. `auto` is float32 for a base below 2 billion
    parameters and bfloat16 above, where the products are bfloat16 too."""

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class FullWeights(Config):
    """Every weight trains, in float32."""

    kind: Literal["full"] = "full"


class TrainConfig(Config):
    """One training run: a base, some rows, and the updates made on them. Loss on the assistant's tokens only."""

    trainer: Literal["trl", "unsloth"] = "trl"
    """What computes the updates: transformers and peft, or unsloth's kernels (adapters only, and only on a GPU). Rows,
    labels, order, optimizer and number of updates are the same."""
    method: Annotated[Lora | FullWeights, Field(discriminator="kind")] = Lora()
    """What trains: an adapter or all weights."""
    lr: float = Field(default=2e-4, gt=0)
    """Learning rate at its highest."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay at `lr`, or go down to 0 in a line or a half cosine."""
    warmup_updates: int | None = Field(default=None, ge=0)
    """Updates over which the rate rises linearly: update i of w runs at lr * i / w, counted from 1."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """The same as a part of all updates, rounded up. At most one of the two is given."""
    batch_size: int = Field(default=16, ge=1)
    """Rows in one update."""
    micro_batch: RunOnly[int | None] = Field(default=None, ge=1)
    """Rows in one forward pass; the result does not depend on it. Nothing: as many as fit. Halved where memory runs
    out."""
    updates: int | None = Field(default=None, ge=1)
    """Updates to make, each of `batch_size` rows; used-up rows come round again in a new order."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows to make instead; the last update of a pass takes the rows that are left."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decoupled decay, on matrices only: norms and biases are spared."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; nothing: never clipped."""
    max_length: int = Field(default=512, ge=2)
    """Tokens in a row, template included. Longer rows stop the run: none is ever cut."""
    seed: int = Field(default=0, ge=0)
    """Seeds the adapter's first values, dropout and, without `order_seed`, the order of the rows."""
    order_seed: int | None = Field(default=None, ge=0)
    """Seeds the order of the rows alone."""
    rows: int | None = Field(default=None, ge=1)
    """Use the first so many rows; nothing: all."""
    keep: tuple[int, ...] = ()
    """Updates after which the weights are kept; those of the last update always are."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the matrix products: bfloat16 is autocast over float32 weights; `auto` takes it where the card, or the
    processor where there is no card, has instructions for it."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel; `auto` takes flash-attention where it is installed and the card can, otherwise sdpa. Under
    flash-attention trl's rows are packed: no time and no memory go to padding."""
    cuda_graph: RunOnly[bool] = True
    """On a GPU under sdpa, replay each update as one CUDA graph where the model and the micro-batch allow it."""
    checkpoint_every: RunOnly[int | None] = Field(default=None, ge=1)
    """Updates between checkpoints that a killed run resumes from; nothing: about once a minute."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError("give `updates` or `epochs`, one of the two")
        if self.trainer == "unsloth" and isinstance(self.method, FullWeights):
            raise ValueError("unsloth trains adapters only here: set method.kind to lora, or trainer to trl")
        if self.warmup_updates is not None and self.warmup_fraction is not None:
            raise ValueError("give `warmup_updates` or `warmup_fraction`, not both")
        if any(update < 1 or update > (self.updates or update) for update in self.keep):
            raise ValueError("`keep` counts updates from 1 to the last one")
        return self

    def resolved(self) -> Self:
        """`dtype` and `attention` as this machine has them; a `frozen_base` follows from them and from the base."""
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
    """Why unsloth cannot train here and what to do, or None."""
    card = gpu()
    if card is None:
        return "it needs an NVIDIA GPU"
    if card.capability < VOLTA:
        return f"it needs compute capability 7.0, {card.name} has {card.capability[0]}.{card.capability[1]}"
    if find_spec("unsloth") is None:
        return "it is not installed (pip install -e '.[gpu]' -c constraints.txt)"
    return None


class SoftTrainConfig(TrainConfig):
    """A training run whose labels are the teacher's logits at the answer's tokens, end of turn included."""

    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are taken at this temperature; the loss is multiplied by its square (arXiv 1503.02531)."""
