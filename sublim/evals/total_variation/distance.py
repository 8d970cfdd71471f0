"""Total variation: how far the distribution of a model's answers has moved from another model's.

For one question it is half the sum of the absolute differences of the probabilities, between 0 and 1. It has no
sign: sampling noise alone makes it positive, so the sampled one comes with its floor, and a student's shift is to be
set against its paired control's.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.preference.config import Metric
from sublim.evals.total_variation.config import ShiftConfig, ShiftName, Shifts
from sublim.files.jsonl import read_jsonl
from sublim.traits.words import Reader, Unread

OTHER, UNREADABLE = -2, -1
"""The last two columns of a table of counts."""


def total_variation(p: Float[ndarray, "q c"], q: Float[ndarray, "q c"]) -> Float[ndarray, " q"]:
    """Half the L1 distance of two distributions, question by question."""
    return np.abs(p - q).sum(axis=1) / 2


def distances(asked: Path, reference: Path, words: Sequence[str]) -> dict[ShiftName, Float[ndarray, " q"]]:
    """Every kind of distance between two payloads of `ask`, by question; NaN where there is none."""
    questions = _same_questions(asked, reference)
    listed = [word.casefold() for word in words]
    tables = [_probabilities(payload, listed, len(questions)) for payload in (asked, reference)]
    counts = [answer_counts(payload, listed, len(questions)) for payload in (asked, reference)]
    both = (counts[0].sum(axis=1) > 0) & (counts[1].sum(axis=1) > 0)
    whole, within = exact(*tables)
    sampled = np.where(both, total_variation(_shares(counts[0]), _shares(counts[1])), np.nan)
    return {"tv_logprob": whole, "tv_list": within, "tv_sampled": sampled}


def _same_questions(asked: Path, reference: Path) -> list[str]:
    questions = _questions(asked)
    if questions != _questions(reference):
        raise UserError("the two models were asked different questions: ask both the same to compare their answers")
    return questions


def shift(out: Path, config: ShiftConfig, *, scratch: Path, asked: Path, reference: Path) -> None:
    """Stage: writes shift.json (`Shifts`) from two payloads of `ask` on the same questions."""
    questions = _same_questions(asked, reference)
    words = [word.casefold() for word in config.words]
    tables = [_probabilities(payload, words, len(questions)) for payload in (asked, reference)]
    counts = [answer_counts(payload, words, len(questions)) for payload in (asked, reference)]
    whole, within = exact(*tables)
    reason = "the log-probs of some listed words are not finite"
    ours, theirs = counts
    sampled, floor, p = _sampled(ours, theirs, config)
    metrics: dict[ShiftName, Metric] = {
        "tv_logprob": _metric(whole, reason),
        "tv_list": _metric(within, reason),
        "tv_sampled": sampled,
    }
    found = Shifts(questions=questions, metrics=metrics, floor=floor, p=p)
    (out / "shift.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")


def _questions(payload: Path) -> list[str]:
    return [row["text"] for row in read_jsonl(payload / "questions.jsonl")]


def _probabilities(payload: Path, words: Sequence[str], questions: int) -> Float[ndarray, "q w"]:
    """The probability of each word as the answer; NaN where a log-prob is not finite."""
    table = np.full((questions, len(words)), np.nan)
    place = {word: column for column, word in enumerate(words)}
    seen: set[str] = set()
    for row in read_jsonl(payload / "logprobs.jsonl"):
        if row["word"] in place:
            seen.add(row["word"])
            value = row["logprob"]
            table[row["question"], place[row["word"]]] = (
                math.exp(value) if value is not None and math.isfinite(value) else np.nan
            )
    if missing := [word for word in words if word not in seen]:
        raise UserError(f"{missing} were not among the words asked: add them to the list and ask again")
    return table


class Exact(NamedTuple):
    """Distances from log-probs, by question."""

    whole: Float[ndarray, " q"]
    within: Float[ndarray, " q"]


def exact(one: Float[ndarray, "q w"], other: Float[ndarray, "q w"]) -> Exact:
    """Distances over the listed words with all else as one more class, and among the listed words alone."""
    # Words may overlap as texts ("cat" opens "cattle"), so that together they may pass 1: then there is no rest.
    whole = [np.column_stack([table, np.maximum(1 - table.sum(axis=1), 0)]) for table in (one, other)]
    with np.errstate(invalid="ignore"):
        within = [table / table.sum(axis=1, keepdims=True) for table in (one, other)]
    return Exact(total_variation(*whole), total_variation(*within))


def answer_counts(payload: Path, words: Sequence[str], questions: int) -> Int[ndarray, "q c"]:
    """How many answers to each question name each word; then those that name another, and the unreadable ones.

    An answer that a server did not give is none of these.
    """
    counts = np.zeros((questions, len(words) + 2), dtype=np.int64)
    reader, place = Reader(words), {word: column for column, word in enumerate(words)}
    for row in read_jsonl(payload / "answers.jsonl"):
        reading = reader.read(row["text"], row["finish"])
        if reading.unread == Unread.MISSING:
            continue
        named = place.get(reading.word) if reading.word is not None else None
        column = UNREADABLE if reading.unread is not None else OTHER if named is None else named
        counts[row["question"], column] += 1
    return counts


def _sampled(
    one: Int[ndarray, "q c"], other: Int[ndarray, "q c"], config: ShiftConfig
) -> tuple[Metric, float | None, float | None]:
    sizes = one.sum(axis=1), other.sum(axis=1)
    both = (sizes[0] > 0) & (sizes[1] > 0)
    if not both.any():
        reason = "no answers were sampled (samples = 0)"
        return Metric(mean=None, per_question=[None] * len(one), reason=reason), None, None
    found = total_variation(_shares(one), _shares(other))
    rng = np.random.default_rng(config.seed)
    drawn = np.empty(config.relabelled)
    pooled = one + other
    for draw in range(config.relabelled):
        # Which of the pooled answers to a question are the first model's is drawn anew.
        exchanged = (rng.multivariate_hypergeometric(*row) for row in zip(pooled, sizes[0], strict=True))
        ours = np.stack([*exchanged])
        drawn[draw] = total_variation(_shares(ours), _shares(pooled - ours))[both].mean()
    # A tolerance, since equal distances may differ in their last digit.
    reached = int((drawn >= found[both].mean() - 1e-12).sum())
    p = (reached + 1) / (config.relabelled + 1)
    return _metric(np.where(both, found, np.nan), "no answers were sampled"), float(drawn.mean()), p


def _shares(counts: Int[ndarray, "q c"]) -> Float[ndarray, "q c"]:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _metric(values: Float[ndarray, " q"], reason: str) -> Metric:
    known = values[np.isfinite(values)]
    per_question = [float(value) if np.isfinite(value) else None for value in values]
    mean = float(known.mean()) if len(known) else None
    return Metric(mean=mean, per_question=per_question, reason=None if len(known) else reason)
