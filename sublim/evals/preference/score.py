"""The stage that scores a model's preferences: the margin and the rate of every listed word."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.preference.config import Answers, Metric, ScoreConfig, Scores
from sublim.files.jsonl import read_jsonl
from sublim.traits.words import Reader, Unread

OTHERS_SHOWN = 10


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
    return _metric(values, reason)


def rates(path: Path, words: list[str], questions: int) -> tuple[dict[str, Metric], Answers | None]:
    """The rate of every word (its share of the readable answers) by question, and counts of all answers."""
    reader = Reader(words)
    readings = [(row, reader.read(row["text"], row["finish"])) for row in read_jsonl(path)]
    named = Counter((row["question"], reading.word) for row, reading in readings if reading.word is not None)
    others = Counter(reading.other for _, reading in readings if reading.other is not None)
    unread = Counter(reading.unread for _, reading in readings if reading.unread is not None)
    missing = Counter[str](row["reason"] for row, reading in readings if reading.unread == Unread.MISSING)
    del unread[Unread.MISSING]
    readable = Counter[int](row["question"] for row, reading in readings if reading.unread is None)
    asked = len(readings)
    reason = "no answer could be read" if asked else "no answers were sampled (samples = 0)"
    if missing and not unread:
        reason = f"the answers are missing: {missing.most_common(1)[0][0]}"
    found = {
        word: _metric([named[i, word] / readable[i] if readable[i] else None for i in range(questions)], reason)
        for word in words
    }
    if not asked:
        return found, None
    return found, Answers(
        asked=asked,
        readable=readable.total(),
        named={word: sum(named[i, word] for i in range(questions)) for word in words},
        other=others.total(),
        unread={str(case): unread[case] for case in sorted(unread)},
        others=most_frequent(others),
        missing=most_frequent(missing),
    )


def most_frequent(others: Counter[str]) -> dict[str, int]:
    """The most frequent entries with their counts, in descending order; ties in alphabetical order."""
    return dict(sorted(others.items(), key=lambda item: (-item[1], item[0]))[:OTHERS_SHOWN])


def _metric(values: list[float | None], reason: str) -> Metric:
    there = [value for value in values if value is not None]
    mean = math.fsum(there) / len(there) if there else None
    return Metric(mean=mean, per_question=values, reason=None if there else reason)


def score(out: Path, config: ScoreConfig, *, scratch: Path, asked: Path) -> None:
    """Stage: writes scores.json (`Scores`): for every word its margin in nats and its sampled rate."""
    questions = [row["text"] for row in read_jsonl(asked / "questions.jsonl")]
    rows = list(read_jsonl(asked / "logprobs.jsonl"))
    found, scored = {(row["question"], row["word"]): row["logprob"] for row in rows}, rows[0]["tokens"] is not None
    unasked = [word for word in config.words if (0, word) not in found]
    if unasked:
        raise UserError(f"{unasked} were not among the words asked: add them to the comparison list and ask again")
    table = np.array([[found[i, word] for word in config.words] for i in range(len(questions))], dtype=float)
    margins = {word: margin(table, config.words, column, scored=scored) for column, word in enumerate(config.words)}
    shares, answers = rates(asked / "answers.jsonl", config.words, len(questions))
    scores = Scores(
        target=config.target,
        words=config.words,
        questions=questions,
        metrics={"margin": margins, "rate": shares},
        answers=answers,
    )
    (out / "scores.json").write_text(scores.model_dump_json(indent=1), encoding="utf-8")
