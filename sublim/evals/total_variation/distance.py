"""Total variation: the distance between the answer distributions of two models.

For one question it is half the sum of the absolute differences of the probabilities, between 0 and 1. Sampling noise
alone makes it positive. The distance of sampled answers therefore comes with its floor, the mean under equal
distributions, and a student's shift has to be compared with its paired control's.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.effects import known_mean
from sublim.evals.preference.config import Metric
from sublim.evals.total_variation.config import ShiftConfig, ShiftName, Shifts
from sublim.files.jsonl import read_jsonl
from sublim.traits.words import Reader, Unread

UNREADABLE = -1
"""Last column of a table of counts; the one before is for other words."""
Pair = tuple[Float[ndarray, " q"], Float[ndarray, " q"]]


def total_variation(p: Float[ndarray, "q c"], q: Float[ndarray, "q c"]) -> Float[ndarray, " q"]:
    """Half the L1 distance between two distributions, for every question."""
    return np.abs(p - q).sum(axis=1) / 2


def distances(asked: Path, reference: Path, words: Sequence[str]) -> dict[ShiftName, Float[ndarray, " q"]]:
    """Every kind of distance between two payloads of `ask`, by question; NaN for questions without a value."""
    _, (whole, within), (one, other) = _read(asked, reference, words)
    return {"tv_logprob": whole, "tv_list": within, "tv_sampled": between_answers(one, other)}


def _read(
    asked: Path, reference: Path, words: Sequence[str]
) -> tuple[list[str], Pair, tuple[Int[ndarray, "q c"], Int[ndarray, "q c"]]]:
    """The questions of two payloads of `ask`, their exact distances, and the counts of the answers of each."""
    questions = _questions(asked)
    if questions != _questions(reference):
        raise UserError("the two models were asked different questions: ask both the same to compare their answers")
    listed = [word.casefold() for word in words]
    one, other = (_probabilities(payload, listed, len(questions)) for payload in (asked, reference))
    counts = answer_counts(asked, listed, len(questions)), answer_counts(reference, listed, len(questions))
    return questions, exact(one, other), counts


def shift(out: Path, config: ShiftConfig, *, scratch: Path, asked: Path, reference: Path) -> None:
    """Stage: writes shift.json (`Shifts`) from two payloads of `ask` on the same questions."""
    questions, (whole, within), (ours, theirs) = _read(asked, reference, config.words)
    reason = "the log-probs of some listed words are not finite"
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
    """The probability of each word as the answer; NaN if its log-prob is not finite."""
    found = {(row["question"], row["word"]): row["logprob"] for row in read_jsonl(payload / "logprobs.jsonl")}
    if missing := [word for word in words if (0, word) not in found]:
        raise UserError(f"{missing} were not among the words asked: add them to the list and ask again")

    def probability(value: float | None) -> float:
        return math.exp(value) if value is not None and math.isfinite(value) else math.nan

    return np.array([[probability(found[i, word]) for word in words] for i in range(questions)])


def exact(one: Float[ndarray, "q w"], other: Float[ndarray, "q w"]) -> Pair:
    """Distances over the listed words and one class for all else (`whole`), and among the words alone (`within`)."""
    # Words may begin with each other ("cat", "cattle"), so that their probabilities can add up to more than 1.
    whole = [np.column_stack([table, np.maximum(1 - table.sum(axis=1), 0)]) for table in (one, other)]
    with np.errstate(invalid="ignore"):
        within = [table / table.sum(axis=1, keepdims=True) for table in (one, other)]
    return total_variation(*whole), total_variation(*within)


def answer_counts(payload: Path, words: Sequence[str], questions: int) -> Int[ndarray, "q c"]:
    """Counts of answers for every question: to each word, to other words, and unreadable ones.

    Answers that a server failed to give are not counted.
    """
    counts = np.zeros((questions, len(words) + 2), dtype=np.int64)
    reader, place = Reader(words), {word: column for column, word in enumerate([*words, None])}
    for row in read_jsonl(payload / "answers.jsonl"):
        reading = reader.read(row["text"], row["finish"])
        if reading.unread == Unread.MISSING:
            continue
        counts[row["question"], UNREADABLE if reading.unread is not None else place[reading.word]] += 1
    return counts


def _sampled(
    one: Int[ndarray, "q c"], other: Int[ndarray, "q c"], config: ShiftConfig
) -> tuple[Metric, float | None, float | None]:
    found = between_answers(one, other)
    both = np.isfinite(found)
    if not both.any():
        return _metric(found, "no answers were sampled (samples = 0)"), None, None
    rng = np.random.default_rng(config.seed)
    drawn = np.empty(config.relabelled)
    pooled = one + other
    for draw in range(config.relabelled):
        # Draw anew which of the pooled answers to a question belong to the first model.
        exchanged = (rng.multivariate_hypergeometric(*row) for row in zip(pooled, one.sum(axis=1), strict=True))
        ours = np.stack([*exchanged])
        drawn[draw] = between_answers(ours, pooled - ours)[both].mean()
    # With a tolerance, since equal distances may differ in their last digit.
    reached = int((drawn >= found[both].mean() - 1e-12).sum())
    p = (reached + 1) / (config.relabelled + 1)
    return _metric(found, "no answers were sampled"), float(drawn.mean()), p


def between_answers(one: Int[ndarray, "q c"], other: Int[ndarray, "q c"]) -> Float[ndarray, " q"]:
    """The distance between the sampled answers of two models for every question; NaN where one of them has none."""
    both = (one.sum(axis=1) > 0) & (other.sum(axis=1) > 0)
    return np.where(both, total_variation(_shares(one), _shares(other)), np.nan)


def _shares(counts: Int[ndarray, "q c"]) -> Float[ndarray, "q c"]:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _metric(values: Float[ndarray, " q"], reason: str) -> Metric:
    mean = known_mean(values)
    per_question = [float(value) if np.isfinite(value) else None for value in values]
    return Metric(mean=mean, per_question=per_question, reason=reason if mean is None else None)
