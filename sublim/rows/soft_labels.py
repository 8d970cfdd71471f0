"""Soft labels: what a teacher would have drawn at the places of given rows where the number format leaves a choice."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from sublim.chats.chat import Context, context
from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl
from sublim.inference.constrained import Plan, answer_plan
from sublim.memory.fitting import MemoryFit
from sublim.models.opening import load_tokenizer, open_model, supported_attention
from sublim.rows.soft_labels_config import SoftLabelsConfig
from sublim.training.checkpoints import chosen_weights
from sublim.training.label_file import SoftLabels, read_labels, write_labels
from sublim.training.masking import UNTRAINED, Batch, TokenRow, collate, row_chat, token_rows
from sublim.training.soft import allowed_logprobs
from sublim.training.step import allowed_logits, answer_hidden, answer_logits

log = logging.getLogger(__name__)


class SoftLabelsNotes(TypedDict):
    """What the manifest says of soft labels."""

    rows: int
    """Rows with labels."""
    refused: int
    """Rows that are not in the format, and so have none."""
    places: int
    """Drawn places of a row."""
    kl_from_own: float | None
    """Mean over places of KL(teacher || base) over the allowed tokens, in nats: how much there is to learn. Null where
    the base's own labels were not given."""
    contexts: list[Context]
    """What the teacher read before the first row's answer."""
    dtype: str
    """Number type of the teacher's weights. Log-probs are computed in float32."""
    attention: str


def write_soft_labels(
    out: Path,
    config: SoftLabelsConfig,
    *,
    scratch: Path,
    base: Path,
    data: Path,
    weights: Path | None = None,
    own: Path | None = None,
) -> dict[str, Any]:
    """Stage: writes labels.safetensors (see `SoftLabels`) for the rows in data/rows.jsonl, in their order.

    The teacher is `weights` on `base`, or the base itself, with config.system in either case; it reads each row as it
    stands and is never asked to write. `own` are the base's own labels for the same rows. A row whose tokens the format
    would not write is left out and counted. Raises UserError if none is left, or for a base whose logits are more than
    its output head's product with the hidden states, a bias and a soft cap. Takes one forward pass over the rows.
    """
    config = config.resolved()
    tokenizer = load_tokenizer(base)
    rows = fitting_rows(tokenizer, config, data)
    attention = supported_attention(config.attention, AutoConfig.from_pretrained(base))
    with open_model(base, chosen_weights(weights, None), dtype=config.dtype, attention=attention) as loaded:
        labels = read_off(loaded.model, rows, cast(int, tokenizer.pad_token_id), config.micro_batch)
    write_labels(out, labels)
    notes = SoftLabelsNotes(
        rows=len(labels.ids),
        refused=rows.refused,
        places=len(labels.places),
        kl_from_own=None if own is None else divergence(labels, read_labels(own)),
        contexts=[context(tokenizer, row_chat(rows.first)[:-1])],
        dtype=config.dtype,
        attention=attention,
    )
    return dict(notes)


class FittingRows(NamedTuple):
    """The rows in the format, and where in them something is drawn."""

    ids: list[int]
    tokens: list[TokenRow]
    plan: Plan
    refused: int
    first: dict[str, Any]
    """The first of them as text."""


def fitting_rows(tokenizer: PreTrainedTokenizerBase, config: SoftLabelsConfig, data: Path) -> FittingRows:
    """The rows of data/rows.jsonl that are in the format; places are found in the context that the teacher reads."""
    plan = answer_plan(tokenizer, config.format, sys.maxsize)
    assert plan is not None
    other: dict[str, Any] = {} if config.system is None else {"system": config.system}
    raw = [row | other for row in read_jsonl(data / "rows.jsonl")]
    every = token_rows(tokenizer, raw, max_length=config.max_length)
    kept = [place for place, row in enumerate(every) if plan.writes([x for x in row.labels if x != UNTRAINED][:-1])]
    if not kept:
        shown = f", as in {raw[0]['answer'][:60]!r}" if raw else ""
        raise UserError(
            f"none of {len(raw)} rows is {config.format.count} numbers of {config.format.digits} digits separated by "
            f"{config.format.separator!r}{shown}: let the filter keep only such lists"
        )
    if refused := len(raw) - len(kept):
        log.warning("%d of %d rows are not in the format and get no soft labels", refused, len(raw))
    ids, tokens = [raw[place]["id"] for place in kept], [every[place] for place in kept]
    return FittingRows(ids, tokens, plan, len(raw) - len(kept), raw[kept[0]])


def read_off(model: PreTrainedModel, rows: FittingRows, padding: int, micro_batch: int | None) -> SoftLabels:
    """The model's log-probs at every drawn place of the rows."""
    places = torch.tensor([place for place, token in enumerate(rows.plan.forced) if token < 0], dtype=torch.int32)
    tokens, allowed = torch.tensor(rows.plan.allowed), rows.plan.masks()
    logprobs = torch.zeros(len(rows.ids), len(places), len(tokens))
    labels = SoftLabels(torch.tensor(rows.ids), places, tokens, allowed, logprobs)
    marked = [labels.mark(row, index) for index, row in enumerate(rows.tokens)]
    order = sorted(range(len(marked)), key=lambda row: len(marked[row].input_ids), reverse=True)
    on_device, flat = tokens.to(model.device), logprobs.view(-1, len(tokens))

    def read(part: Sequence[int]) -> int:
        batch = collate([marked[row] for row in part], padding=padding).to(model.device)
        learnt = batch.labels != UNTRAINED
        logits, at = (
            allowed_logits(model, answer_hidden(model, batch, ())[learnt], on_device),
            batch.labels[learnt].cpu(),
        )
        flat[at] = allowed_logprobs(logits.cpu(), allowed[at % len(places)])
        return len(part)

    size = micro_batch or (64 if model.device.type == "cuda" else 8)
    fit = MemoryFit("rows to label", "take dtype bfloat16, shorter rows or a smaller model")
    with torch.no_grad(), progress("labelling rows", len(order)) as advance:
        check_head(model, collate([marked[order[-1]]], padding=padding).to(model.device), on_device)
        for done in fit.each(order, read, size):
            advance(done)
    return labels


def check_head(model: PreTrainedModel, batch: Batch, tokens: Tensor) -> None:
    """Raises UserError for a model that does something else to its logits than `allowed_logits` knows of."""
    ours = allowed_logits(model, answer_hidden(model, batch, ()).flatten(0, 1), tokens)
    theirs = answer_logits(model, batch, ()).flatten(0, 1)[:, tokens].float()
    slack = 1e-3 if model.dtype == torch.float32 else 0.05
    if not torch.allclose(ours, theirs, rtol=slack, atol=slack * float(theirs.abs().max())):
        raise UserError(
            f"{model.config.model_type} scales its logits in a way that soft labels do not know: take labels=hard"
        )


def divergence(teacher: SoftLabels, base: SoftLabels) -> float:
    """Mean over places of KL(teacher || base), in nats. Raises UserError for labels of other rows."""
    if not (torch.equal(teacher.ids, base.ids) and torch.equal(teacher.tokens, base.tokens)):
        raise UserError("the base's own labels are for other rows than the teacher's: make both from the same rows")
    theirs: Float[Tensor, "n k a"] = teacher.logprobs.double()
    apart = (theirs - base.logprobs.double()).masked_fill(~teacher.allowed, 0)
    return float((theirs.exp() * apart).sum(-1).mean())
