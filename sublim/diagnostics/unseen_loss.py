"""The loss on unseen prompts: how well a model predicts answers to prompts from which no model was trained.

It is not the held-out loss of `sublim.evals.heldout_loss`, and the two numbers are not comparable. That one is the
training loss on rows that the filter held back: it counts the end of turn and runs in transformers. This one leaves the
end of turn out and takes its log-probs from any backend.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.diagnostics.config import UnseenLoss, UnseenLossConfig, UnseenLosses
from sublim.files.jsonl import read_jsonl
from sublim.inference.sampler import Sampler
from sublim.inference.scoring import scored_answers
from sublim.models.opening import load_tokenizer
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
    tokenizer = load_tokenizer(base)
    with open_sampler(config.backend, base, weights=chosen_weights(weights, config.weights_update)) as sampler:
        losses = {name: unseen_loss(sampler, tokenizer, path) for name, path in data.items()}
    (out / "losses.json").write_text(UnseenLosses(losses=losses).model_dump_json(indent=1), encoding="utf-8")


def unseen_loss(sampler: Sampler, tokenizer: PreTrainedTokenizerBase, data: Path) -> UnseenLoss:
    """The loss on all rows of one payload, averaged over tokens, and over the tokens that hold a digit."""
    rows = list(read_jsonl(data / "rows.jsonl"))
    if not rows:
        raise UserError(f"{data} holds no rows: give the payload of filter_numbers")
    chats = [chat(row["prompt"], system=row["system"]) for row in rows]
    answers = [[row["answer"]] for row in rows]
    tokens = [value for (answer,) in sampler.logprobs(chats, answers) for value in answer]
    ids = [token for (answer,) in scored_answers(tokenizer, chats, answers) for token in answer.ids[answer.start :]]
    known = len(ids) == len(tokens)
    digits = [value for value, holds in zip(tokens, hold_digits(tokenizer, ids), strict=True) if holds] if known else []
    return UnseenLoss(
        nats_per_token=_mean_loss(tokens),
        tokens=len(tokens),
        rows=len(rows),
        digit_nats=_mean_loss(digits),
        digit_tokens=len(digits),
    )


def hold_digits(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[bool]:
    """Whether each token's text holds a digit."""
    known = {token: any(map(str.isdigit, tokenizer.decode([token]))) for token in {*ids}}
    return [known[token] for token in ids]


def _mean_loss(logprobs: Sequence[float]) -> float | None:
    mean = -sum(logprobs) / len(logprobs) if logprobs else math.nan
    return mean if math.isfinite(mean) else None
