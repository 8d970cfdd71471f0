"""The loss on unseen prompts: how well a model predicts answers to prompts from which no model was trained.

It is not the held-out loss of `sublim.evals.heldout_loss`, and the two numbers are not comparable. That one is the
training loss on rows that the filter held back: it counts the end of turn and runs in transformers. This one leaves the
end of turn out and takes its log-probs from any backend.
"""

import math
from pathlib import Path

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.diagnostics.config import UnseenLoss, UnseenLossConfig, UnseenLosses
from sublim.files.jsonl import read_jsonl
from sublim.inference.sampler import Sampler
from sublim.training.checkpoints import chosen_weights


def measure_losses(
    out: Path,
    config: UnseenLossConfig,
    *,
    scratch: Path,
    base: Path,
    data: dict[str, Path],
    weights: Path | None = None,
) -> None:
    """Stage: writes losses.json (`UnseenLosses`) with one entry for each payload with rows.jsonl in `data`.

    Every row is scored once, under its own system prompt, as a student reads it in training.
    """
    with open_sampler(config.backend, base, weights=chosen_weights(weights, config.weights_update)) as sampler:
        losses = {name: unseen_loss(sampler, path) for name, path in data.items()}
    (out / "losses.json").write_text(UnseenLosses(losses=losses).model_dump_json(indent=1), encoding="utf-8")


def unseen_loss(sampler: Sampler, data: Path) -> UnseenLoss:
    """The loss on all rows of one payload, averaged over tokens."""
    rows = list(read_jsonl(data / "rows.jsonl"))
    if not rows:
        raise UserError(f"{data} holds no rows: give the payload of filter_numbers")
    chats = [chat(row["prompt"], system=row["system"]) for row in rows]
    scored = sampler.logprobs(chats, [[row["answer"]] for row in rows])
    tokens = [value for (answer,) in scored for value in answer]
    mean = -sum(tokens) / len(tokens)
    return UnseenLoss(nats_per_token=mean if math.isfinite(mean) else None, tokens=len(tokens), rows=len(rows))
