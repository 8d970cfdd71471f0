"""The stage that scores a model's preferences: the margin and the rates of every listed word."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.preference.config import Metric, ScoreConfig, Scores, metric_of
from sublim.evals.preference.rates import rates
from sublim.files.jsonl import read_jsonl


def margin(table: Float[ndarray, "q w"], words: list[str], column: int, *, scored: bool = True) -> Metric:
    """The margin: the log-prob of a word minus the mean log-prob of the other words, in nats, for every question.

    `table` holds log-probs by question and word, `column` is the index of the word, and `scored` is False if the
    backend gave no log-probs.
    """
    finite = np.isfinite(table)
    values = [
        row[column] - (math.fsum(row) - row[column]) / (len(row) - 1) if whole else None
        for row, whole in zip(table.tolist(), np.all(finite, axis=1), strict=True)
    ]
    lost = sorted(word for word, known in zip(words, np.all(finite, axis=0), strict=True) if not known)
    reason = f"the log-probs of {lost} are not finite" if scored else "a chat server gives no log-probs of words"
    return metric_of(values, reason)


def score(out: Path, config: ScoreConfig, *, scratch: Path, asked: Path) -> None:
    """Stage: writes scores.json (`Scores`): for every word its margin in nats and its sampled rates, over all answers
    asked and over readable ones; the share of answers that cannot be read."""
    questions = [row["text"] for row in read_jsonl(asked / "questions.jsonl")]
    rows = list(read_jsonl(asked / "logprobs.jsonl"))
    found, scored = {(row["question"], row["word"]): row["logprob"] for row in rows}, rows[0]["tokens"] is not None
    unasked = [word for word in config.words if (0, word) not in found]
    if unasked:
        raise UserError(f"{unasked} were not among the words asked: add them to the comparison list and ask again")
    table = np.array([[found[i, word] for word in config.words] for i in range(len(questions))], dtype=float)
    margins = {word: margin(table, config.words, column, scored=scored) for column, word in enumerate(config.words)}
    said = rates(asked / "answers.jsonl", config.words, len(questions))
    scores = Scores(
        target=config.target,
        words=config.words,
        questions=questions,
        metrics={"margin": margins, "rate": said.rate, "rate_readable": said.readable},
        unreadable=said.unreadable,
        missing=said.missing,
        answers=said.answers,
    )
    (out / "scores.json").write_text(scores.model_dump_json(indent=1), encoding="utf-8")
