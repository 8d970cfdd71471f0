"""What sampled answers say: the share that names each word, and the share that cannot be read."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from sublim.evals.preference.config import ALL, Answers, Metric, metric_of
from sublim.files.jsonl import read_jsonl
from sublim.traits.words import Reader, Unread

OTHERS_SHOWN = 10
REASONS = tuple(sorted(reason for reason in Unread if reason != Unread.MISSING))
"""Why an answer that was given cannot be read."""


class Rates(NamedTuple):
    """Shares of one model's answers by question. A share of no answers at all is null."""

    rate: dict[str, Metric]
    """Share of all answers asked that name each word. An answer that cannot be read names none; one that a server
    failed to give counts as not asked."""
    readable: dict[str, Metric]
    """Share of the readable answers that name each word."""
    unreadable: dict[str, Metric]
    """Share of all answers asked that cannot be read: `all`, then by reason."""
    missing: Metric | None
    """Share of answers that a server failed to give; None if there are none."""
    answers: Answers | None
    """Counts; None if none were sampled."""


def rates(path: Path, words: list[str], questions: int) -> Rates:
    """Reads an answers.jsonl. In a mean every question has the same weight, however many of its answers were given."""
    reader = Reader(words)
    rows = [(row, reader.read(row["text"], row["finish"])) for row in read_jsonl(path)]

    def count(chosen: Iterable[bool]) -> Int[ndarray, " q"]:
        at = [row["question"] for (row, _), wanted in zip(rows, chosen, strict=True) if wanted]
        return np.bincount(np.array(at, dtype=int), minlength=questions)

    named = {word: count(reading.word == word for _, reading in rows) for word in words}
    by_reason = {reason: count(reading.unread == reason for _, reading in rows) for reason in REASONS}
    sampled, missing = count(True for _ in rows), count(reading.unread == Unread.MISSING for _, reading in rows)
    unread = np.sum([*by_reason.values()], axis=0)
    given, readable = sampled - missing, sampled - missing - unread
    failures = Counter[str](row["reason"] for row, reading in rows if reading.unread == Unread.MISSING)
    lost = f"the answers are missing: {failures.most_common(1)[0][0]}" if failures else None
    none = lost or "no answers were sampled (samples = 0)"
    others = Counter(reading.other for _, reading in rows if reading.other is not None)
    answers = Answers(
        asked=len(rows),
        readable=int(readable.sum()),
        named={word: int(count.sum()) for word, count in named.items()},
        other=others.total(),
        unread={str(reason): int(count.sum()) for reason, count in by_reason.items() if count.any()},
        others=most_frequent(others),
        missing=most_frequent(failures),
    )
    return Rates(
        rate={word: _share(count, given, none) for word, count in named.items()},
        readable={
            word: _share(count, readable, "no answer could be read" if given.any() else none)
            for word, count in named.items()
        },
        unreadable={
            ALL: _share(unread, given, none),
            **{str(reason): _share(count, given, none) for reason, count in by_reason.items()},
        },
        missing=_share(missing, sampled, none) if failures else None,
        answers=answers if rows else None,
    )


def _share(part: Int[ndarray, " q"], whole: Int[ndarray, " q"], reason: str) -> Metric:
    pairs = zip(part.tolist(), whole.tolist(), strict=True)
    return metric_of([n / of if of else None for n, of in pairs], reason)


def most_frequent(others: Counter[str]) -> dict[str, int]:
    """The most frequent entries with their counts, in descending order; ties in alphabetical order."""
    return dict(sorted(others.items(), key=lambda item: (-item[1], item[0]))[:OTHERS_SHOWN])
