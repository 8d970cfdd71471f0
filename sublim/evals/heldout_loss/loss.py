"""The held-out loss: the training loss on rows that the filter held back from training.

It counts the same tokens as training does, including the end of turn, and is computed in transformers. It is not the
loss on unseen prompts of `sublim.diagnostics.unseen_loss`, which leaves the end of turn out and runs in any backend.
"""

import logging
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from sublim.chats.chat import context
from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.evals.heldout_loss.config import HeldoutConfig, HeldoutLoss
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.memory.fitting import MemoryFit
from sublim.models.opening import load_tokenizer, open_model, supported_attention
from sublim.training.checkpoints import chosen_weights
from sublim.training.masking import UNTRAINED, Batch, TokenRow, collate, label_count, row_chat, token_rows

log = logging.getLogger(__name__)


def heldout_loss(
    out: Path, config: HeldoutConfig, *, scratch: Path, base: Path, data: Path, weights: Path | None = None
) -> dict[str, Any] | None:
    """Stage: writes heldout.json (`HeldoutLoss`) and heldout_rows.jsonl {row, loss, tokens} for data/held_out.jsonl.

    `data` is the payload of a filter. `weights` is a training payload, an adapter or a full model; without it the base
    is read. The loss of a row is summed over its answer tokens, in nats. Costs one forward pass over the rows.
    """
    config = config.resolved()
    tokenizer = load_tokenizer(base)
    raw = heldout_rows(data, config.rows)
    rows = token_rows(tokenizer, raw, max_length=config.max_length)
    weights = chosen_weights(weights, config.weights_update)
    attention = supported_attention(config.attention, AutoConfig.from_pretrained(base))
    with open_model(base, weights, dtype=config.dtype, attention=attention) as loaded:
        padding = cast(int, loaded.tokenizer.pad_token_id)
        size = config.micro_batch or (64 if loaded.model.device.type == "cuda" else 8)
        losses = row_losses(loaded.model, rows, size=size, padding=padding)
    tokens = [label_count([row]) for row in rows]
    found = summary(losses, tokens)
    (out / "heldout.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
    shown = (loss if math.isfinite(loss) else None for loss in losses)
    write_jsonl(
        out / "heldout_rows.jsonl",
        ({"row": i, "loss": loss, "tokens": n} for i, (loss, n) in enumerate(zip(shown, tokens, strict=True))),
    )
    log.info("held-out loss %s nats a token over %d rows", found.loss, found.rows)
    return {"contexts": [context(tokenizer, row_chat(raw[0])[:-1])], "attention": attention, "dtype": config.dtype}


def heldout_rows(data: Path, wanted: int | None) -> list[dict[str, Any]]:
    """The held-out rows in the payload of a filter, or the first `wanted` of them. UserError if there are fewer."""
    path = data / "held_out.jsonl"
    rows = list(islice(read_jsonl(path), wanted)) if path.exists() else []
    if len(rows) < (wanted or 1):
        raise UserError(f"{len(rows)} held-out rows of {wanted or 1} wanted: raise filter.held_out")
    return rows


@torch.no_grad()
def row_losses(model: PreTrainedModel, rows: Sequence[TokenRow], *, size: int, padding: int) -> list[float]:
    """The loss of every row's answer in nats, in the order of `rows`, from forward passes over at most `size` rows."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].input_ids), reverse=True)
    losses = [math.nan] * len(rows)

    def read(places: Sequence[int]) -> list[tuple[int, float]]:
        batch = collate([rows[place] for place in places], padding=padding).to(model.device)
        return list(zip(places, batch_losses(model, batch).tolist(), strict=True))

    fit = MemoryFit("held-out rows", "take dtype bfloat16, shorter rows or a smaller model")
    with progress("held-out loss", len(rows)) as advance:
        for found in fit.each(order, read, size):
            for place, loss in found:
                losses[place] = loss
            advance(len(found))
    return losses


def batch_losses(model: Any, batch: Batch) -> Float[Tensor, " b"]:
    """Cross-entropy summed over each row's answer. Logits are made for the answers' positions alone."""
    logits = model(
        input_ids=batch.input_ids[:, :-1],
        attention_mask=batch.attention_mask[:, :-1],
        position_ids=batch.position_ids[:, :-1],
        logits_to_keep=batch.labels.shape[1],
        use_cache=False,
    ).logits
    lost = F.cross_entropy(logits.float().transpose(1, 2), batch.labels, ignore_index=UNTRAINED, reduction="none")
    return lost.double().sum(1)


def summary(losses: Sequence[float], tokens: Sequence[int]) -> HeldoutLoss:
    """The result over all rows, averaged over tokens."""
    lost = sum(not math.isfinite(loss) for loss in losses)
    reason = f"the loss of {lost} of {len(losses)} rows is not finite: the training diverged" if lost else None
    mean = None if lost else math.fsum(losses) / sum(tokens)
    return HeldoutLoss(loss=mean, rows=len(losses), tokens=sum(tokens), reason=reason)
