"""Held-out loss: how well a model predicts number lists it has not read."""

import math
from pathlib import Path

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.diagnostics.config import Loss, LossConfig, Losses
from sublim.files.jsonl import read_jsonl
from sublim.inference.sampler import Sampler
from sublim.training.checkpoints import chosen_weights


def measure_losses(
    out: Path, config: LossConfig, *, scratch: Path, base: Path, data: dict[str, Path], weights: Path | None = None
) -> None:
    """Stage: writes losses.json (`Losses`) for every set in `data`, each a payload with rows.jsonl.

    Costs one scoring of each row. Each row is read under its own system prompt, as a student reads it.
    """
    with open_sampler(config.backend, base, weights=chosen_weights(weights, config.weights_update)) as sampler:
        losses = {name: loss_of(sampler, path) for name, path in data.items()}
    (out / "losses.json").write_text(Losses(losses=losses).model_dump_json(indent=1), encoding="utf-8")


def loss_of(sampler: Sampler, data: Path) -> Loss:
    """The loss on all rows of one payload, every token counted alike."""
    rows = list(read_jsonl(data / "rows.jsonl"))
    if not rows:
        raise UserError(f"{data} holds no rows: give the payload of filter_numbers")
    chats = [chat(row["prompt"], system=row["system"]) for row in rows]
    scored = sampler.logprobs(chats, [[row["answer"]] for row in rows])
    tokens = [value for (answer,) in scored for value in answer]
    mean = -sum(tokens) / len(tokens)
    return Loss(nats_per_token=mean if math.isfinite(mean) else None, tokens=len(tokens), rows=len(rows))
