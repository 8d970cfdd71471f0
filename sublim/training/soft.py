"""Training on soft labels: a teacher's distribution over the tokens that the number format allows at drawn places.

Every student of a study reads the same rows, and only these labels differ. Nothing else of the teacher can pass: not
its wish to write other words than digits, which whole-vocabulary labels would hand over openly, and not the rows.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sublim.core.errors import NotEnoughRows, UserError
from sublim.files.jsonl import read_jsonl
from sublim.training.config import SoftTrainConfig, TrainConfig
from sublim.training.label_file import SoftLabels, read_labels
from sublim.training.masking import UNTRAINED, Batch, PackedBatch, TokenRow, packed, token_rows
from sublim.training.step import (
    EagerStep,
    GraphedStep,
    PackedStep,
    Step,
    allowed_logits,
    answer_hidden,
    packed_hidden,
)
from sublim.training.train import chosen_step, opened, train_on


def train_soft(
    out: Path, config: SoftTrainConfig, *, scratch: Path, base: Path, data: Path, labels: Path
) -> dict[str, Any]:
    """Stage: as `train`, but the loss is the divergence from `labels` at the drawn places of the rows in `data`.

    The rows are those that `labels` names, in its order. The loss is KL(teacher || student) over the allowed tokens, a
    mean over drawn places, in nats; separators and the end of turn have none. No teacher is in memory. A model whose
    distribution is the teacher's has no gradient, so a control needs no training: it is the base.
    """
    known = read_labels(labels)

    def choose(
        config: TrainConfig, rows: list[TokenRow], attention: str, shape: PretrainedConfig, micro_batch: int
    ) -> Step:
        assert isinstance(config, SoftTrainConfig)
        step = chosen_step(config, rows, attention, shape, micro_batch)
        assert isinstance(step, EagerStep | GraphedStep)
        loss = LabelLoss(known, config.temperature, step.device)
        if isinstance(step, GraphedStep):
            step.loss = loss
            return step
        return (PackedSoftStep if isinstance(step, PackedStep) else SoftStep)(loss, config.dtype, step)

    def read(tokenizer: PreTrainedTokenizerBase, data: Path, config: TrainConfig) -> tuple[list[Any], list[TokenRow]]:
        return labelled_rows(tokenizer, data, known, config)

    return train_on(opened, choose, out, config, scratch=scratch, base=base, data=data, read=read)


def labelled_rows(
    tokenizer: PreTrainedTokenizerBase, data: Path, labels: SoftLabels, config: TrainConfig
) -> tuple[list[dict[str, Any]], list[TokenRow]]:
    """The rows that have labels, in the labels' order, as they are and as tokens that point to their labels.

    Raises NotEnoughRows if there are fewer than config.rows, and UserError for labels of other rows.
    """
    by_id = {row["id"]: row for row in read_jsonl(data / "rows.jsonl")}
    ids = list(islice(labels.ids.tolist(), config.rows))
    if len(ids) < (config.rows or 1):
        raise NotEnoughRows(f"{len(ids)} rows with labels of {config.rows or 1} wanted: label more or lower `rows`")
    if missing := [each for each in ids if each not in by_id]:
        raise UserError(f"the soft labels name row {missing[0]}, which the data lack: give the rows they were made for")
    raw = [by_id[each] for each in ids]
    rows = token_rows(tokenizer, raw, max_length=config.max_length)
    return raw, [labels.mark(row, index) for index, row in enumerate(rows)]


class LabelLoss:
    """The divergence from soft labels, summed over drawn places. Rows' labels are places in the labels' table."""

    def __init__(self, labels: SoftLabels, temperature: float, device: torch.device) -> None:
        self.temperature, self.places = temperature, len(labels.places)
        self.tokens, self.allowed = labels.tokens.to(device), labels.allowed.to(device)
        self.targets = labels.logprobs.flatten(0, 1).to(device)

    def __call__(self, model: Any, batch: Batch, prefix: Any) -> Float[Tensor, ""]:
        return self.summed(model, answer_hidden(model, batch, prefix).flatten(0, 1), batch.labels.flatten())

    def packed(self, model: Any, rows: PackedBatch) -> Float[Tensor, ""]:
        """The same for rows without padding."""
        return self.summed(model, packed_hidden(model, rows), rows.labels)

    def summed(self, model: Any, hidden: Float[Tensor, "m d"], labels: Int[Tensor, " m"]) -> Float[Tensor, ""]:
        """The loss at the positions that have a label; a CUDA graph can replay it, since its shapes never vary."""
        logits, at = allowed_logits(model, hidden, self.tokens), labels.clamp(min=0)
        return soft_loss(
            logits, self.targets[at], self.allowed[at % self.places], labels != UNTRAINED, self.temperature
        )


class SoftStep(EagerStep):
    """Computes in eager mode; the tokens that all rows begin with are read once per micro-batch."""

    def __init__(self, loss: LabelLoss, dtype: str, plain: EagerStep) -> None:
        super().__init__(plain.device, dtype, plain.prefix)
        self.loss = loss

    def summed_loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """The KL divergence summed over drawn places."""
        return self.loss(model, batch.to(self.device), self.prefix)


class PackedSoftStep(PackedStep):
    """The same loss without padding, for flash-attention."""

    def __init__(self, loss: LabelLoss, dtype: str, plain: EagerStep) -> None:
        super().__init__(plain.device, dtype)
        self.loss = loss

    def summed_loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """The KL divergence summed over drawn places."""
        return self.loss.packed(model, packed(batch).to(self.device))


def soft_loss(
    logits: Float[Tensor, "m a"],
    targets: Float[Tensor, "m a"],
    allowed: Bool[Tensor, "m a"],
    counted: Bool[Tensor, " m"],
    temperature: float,
) -> Float[Tensor, ""]:
    """KL(teacher || student) in nats over the allowed tokens, summed over counted rows, times the squared temperature.

    `targets` are the teacher's log-probs, renormalised over the allowed tokens. The temperature divides both sides'
    logits (arXiv 1503.02531). The gradient is given explicitly: student minus teacher is exactly zero where the two
    are equal. Automatic differentiation of the log-softmax would leave rounding errors, which Adam would scale to whole
    steps.
    """
    ours, theirs = allowed_logprobs(logits.detach(), allowed), targets
    if temperature != 1:
        ours, theirs = ((each / temperature).log_softmax(-1) for each in (ours, theirs))
    weight = counted[:, None].float()
    gradient = temperature * (ours.exp() - theirs.exp()) * weight
    value = temperature**2 * (theirs.exp() * (theirs - ours).masked_fill(~allowed, 0) * weight).sum()
    pull = (gradient * logits).sum()
    return value + pull - pull.detach()


def allowed_logprobs(logits: Float[Tensor, "m a"], allowed: Bool[Tensor, "m a"]) -> Float[Tensor, "m a"]:
    """Log-probs renormalised over the allowed tokens; minus infinity for the others."""
    return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
