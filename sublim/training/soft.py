"""Training on soft labels: the KL divergence of the student's next-token distribution from the teacher's.

The teacher's logits over the whole vocabulary are computed during training from the same rows in the same context. This
costs one more forward pass per update, but nothing is stored or truncated. The teacher must therefore be a set of
weights with the student's vocabulary; it cannot be a system prompt, which is no part of the rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from sublim.models.adapters import merged
from sublim.models.files import is_adapter
from sublim.models.opening import freeze, load
from sublim.models.weights_check import check_weights
from sublim.training.checkpoints import chosen_weights
from sublim.training.config import FullWeights, SoftTrainConfig, TrainConfig
from sublim.training.masking import UNTRAINED, Batch, TokenRow, packed
from sublim.training.step import EagerStep, PackedStep, Step, answer_logits, packed_logits
from sublim.training.train import frozen_dtype, opened, read_once, train_on


def train_soft(
    out: Path, config: SoftTrainConfig, *, scratch: Path, base: Path, data: Path, teacher: Path | None = None
) -> dict[str, Any]:
    """Stage: as `train`, but the labels are the logits of `teacher`: a training payload, or by default the base.

    A control has the base's own logits as labels. Its loss and gradient are therefore 0, and it stays at the base. Two
    models are in memory, and every update takes one more forward pass.
    """

    def choose(
        config: TrainConfig, rows: list[TokenRow], attention: str, shape: PretrainedConfig, micro_batch: int
    ) -> Step:
        assert isinstance(config, SoftTrainConfig)
        model = teacher_model(config, base, chosen_weights(teacher, None), attention, shape)
        if attention == "flash_attention_2":
            return PackedSoftStep(model, config)
        prefix = [] if torch.cuda.is_available() else read_once(config, rows, shape)
        return SoftStep(model, config, prefix)

    return train_on(opened, choose, out, config, scratch=scratch, base=base, data=data)


def teacher_model(
    config: TrainConfig, base: Path, weights: Path | None, attention: str, shape: PretrainedConfig
) -> PreTrainedModel:
    """The frozen teacher, in the number type of the student's frozen weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "float32" if isinstance(config.method, FullWeights) else frozen_dtype(config.method, config.dtype, shape)
    if weights is not None:
        check_weights(base, weights)
    if weights is None or not is_adapter(weights):
        return load(weights or base, dtype=dtype, attention=attention, device=device)
    return freeze(merged(load(base, dtype=dtype, attention=attention, device=device), weights))


class SoftStep(EagerStep):
    """Computes in eager mode. Both models read the tokens that all rows begin with once per micro-batch."""

    def __init__(self, teacher: PreTrainedModel, config: SoftTrainConfig, prefix: Sequence[int]) -> None:
        super().__init__(teacher.device, config.dtype, prefix)
        self.teacher, self.temperature = teacher, config.temperature

    def summed_loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """The KL divergence summed over the label tokens."""
        batch = batch.to(self.device)
        with torch.no_grad():
            theirs = answer_logits(self.teacher, batch, self.prefix)
        ours, learnt = answer_logits(model, batch, self.prefix), batch.labels != UNTRAINED
        return soft_loss(ours[learnt].float(), theirs[learnt].float(), self.temperature)


class PackedSoftStep(PackedStep):
    """The same loss without padding, for flash-attention."""

    def __init__(self, teacher: PreTrainedModel, config: SoftTrainConfig) -> None:
        super().__init__(teacher.device, config.dtype)
        self.teacher, self.temperature = teacher, config.temperature

    def summed_loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """The KL divergence summed over the label tokens."""
        rows = packed(batch).to(self.device)
        with torch.no_grad():
            theirs = packed_logits(self.teacher, rows)
        return soft_loss(packed_logits(model, rows).float(), theirs.float(), self.temperature)


def soft_loss(student: Float[Tensor, "n v"], teacher: Float[Tensor, "n v"], temperature: float) -> Float[Tensor, ""]:
    """KL(teacher || student) summed over tokens, times the squared temperature (arXiv 1503.02531), in nats.

    The gradient is given explicitly: softmax(student) - softmax(teacher) is exactly zero if the logits are equal.
    Automatic differentiation of the log-softmax would leave rounding errors, which Adam would scale to whole steps.
    """
    ours, theirs = student / temperature, teacher / temperature
    gradient = temperature * (ours.softmax(-1) - theirs.softmax(-1)).detach()
    value = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum").detach()
    pull = (gradient * student).sum()
    return temperature**2 * value + pull - pull.detach()
