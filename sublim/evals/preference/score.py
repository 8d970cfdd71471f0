"""The stage that scores a model's preferences: the margin and the rate of every listed word."""

import math
from collections import Counter
from pathlib import Path

from sublim.core.errors import UserError
from sublim.evals.preference.config import (
    Answers,
    Metric,
    ScoreConfig,
    Scores,
)
from sublim.files.jsonl import read_jsonl
from sublim.traits.words import Reader, Unread

OTHERS_SHOWN = 10


def margin(table: list[list[float | None]], words: list[str], column: int, *, scored: bool = True) -> Metric:
    """The margin: the log-prob of a word minus the mean log-prob of the other words, in nats, for every question.

    `table` holds log-probs by question and word, `column` is the index of the word, and `scored` is False if the
    backend gave no log-probs.
    """
    values: list[float | None] = []
    lost: Counter[str] = Counter()
    for row in table:
        finite = [value for value in row if value is not None and math.isfinite(value)]
        if len(finite) < len(row):
            lost.update(
                word for word, value in zip(words, row, strict=True) if value is None or not math.isfinite(value)
            )
            values.append(None)
        else:
            values.append(finite[column] - (math.fsum(finite) - finite[column]) / (len(finite) - 1))
    if not scored:
        return _metric(values, "a chat server gives no log-probs of words")
    return _metric(values, f"the log-probs of {sorted(lost)} are not finite")


def rates(path: Path, words: list[str], questions: int) -> tuple[dict[str, Metric], Answers | None]:
    """The rate of every word (its share of the readable answers) by question, and counts of all answers."""
    reader = Reader(words)
    named = [Counter[str]() for _ in range(questions)]
    readable = [0] * questions
    others, unread, missing = Counter[str](), Counter[str](), Counter[str]()
    for row in read_jsonl(path):
        reading = reader.read(row["text"], row["finish"])
        if reading.unread == Unread.MISSING:
            missing[row["reason"]] += 1
            continue
        if reading.unread is not None:
            unread[reading.unread] += 1
            continue
        readable[row["question"]] += 1
        if reading.word is not None:
            named[row["question"]][reading.word] += 1
        elif reading.other is not None:
            others[reading.other] += 1
    asked = sum(readable) + unread.total() + missing.total()
    reason = "no answer could be read" if asked else "no answers were sampled (samples = 0)"
    if missing and not unread:
        reason = f"the answers are missing: {missing.most_common(1)[0][0]}"
    shares = {
        word: [count[word] / n if n else None for count, n in zip(named, readable, strict=True)] for word in words
    }
    found = {word: _metric(values, reason) for word, values in shares.items()}
    if not asked:
        return found, None
    return found, Answers(
        asked=asked,
        readable=sum(readable),
        named={word: sum(count[word] for count in named) for word in words},
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
    table = [[found[i, word] for word in config.words] for i in range(len(questions))]
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
