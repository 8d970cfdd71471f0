"""Derived carriers: filtered rows whose numbers are shuffled, resampled or reformatted, with all else unchanged.

Random draws depend on a row's id and on the position of a number, never on the number itself. So with the same seed the
teacher's row and the base's row for a prompt undergo the same permutation, or take their numbers from the same rows,
and remain a pair. This is exact if both sets have equally many numbers, as constrained answers do.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sublim.carriers.numbers import DIGITS, NumberList, canonical_text, parse_numbers
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl
from sublim.rows.config import DeriveConfig
from sublim.store.payloads import committed

FILES = ("rows.jsonl", "held_out.jsonl")


def derive_rows(out: Path, config: DeriveConfig, *, scratch: Path, rows: Path) -> dict[str, Any]:
    """Stage: writes the filter's files, with derived answers in rows.jsonl and held_out.jsonl, each derived separately.

    Everything else is copied. If no row changes, the content equals that of the filtered rows, so students are taken
    from the cache. Needs a few bytes of memory for each number.
    """
    for name in committed(rows):
        if name not in FILES:
            shutil.copyfile(rows / name, out / name)
    total = changed = 0
    for name in FILES:
        source = rows / name
        if not source.is_file():
            continue
        rewrite = rewriter(source, config)
        with (out / name).open("wb") as derived:
            for row in read_jsonl(source):
                answer = rewrite(row["id"], row["answer"])
                changed += answer != row["answer"]
                total += 1
                derived.write(orjson.dumps({**row, "answer": answer}, option=orjson.OPT_APPEND_NEWLINE))
    if not total:
        raise UserError(f"{rows} holds no rows to derive from: give the payload of filter_numbers")
    return {"rows": total, "changed": changed}


def rewriter(source: Path, config: DeriveConfig) -> Callable[[int, str], str]:
    """A function from a row's id and answer to the derived answer. It must be called for every row in file order."""
    match config.how:
        case "shuffled_within":
            return lambda row, answer: _shuffled(answer, np.random.default_rng([config.seed, row]))
        case "shuffled_across":
            numbers = _pool(source)
            np.random.default_rng(config.seed).shuffle(numbers)
            supply = (str(number, "ascii") for number in numbers)
            return lambda row, answer: _replaced(answer, supply)
        case "marginals":
            places = _pools_by_place(source)
            return lambda row, answer: _redrawn(answer, places, np.random.default_rng([config.seed, row]))
        case "canonical":
            return lambda row, answer: canonical_text(_parsed(answer).numbers)


def _parsed(answer: str) -> NumberList:
    parsed = parse_numbers(answer)
    if not isinstance(parsed, NumberList):
        raise UserError(
            f"{answer[:60]!r} is not a list of numbers ({parsed}): derive from rows that the filter accepted"
        )
    return parsed


def _replaced(answer: str, numbers: Iterator[str]) -> str:
    """`answer` with its numbers replaced in order; the text between them does not change."""
    return DIGITS.sub(lambda _: next(numbers), answer)


def _shuffled(answer: str, rng: np.random.Generator) -> str:
    numbers = DIGITS.findall(answer)
    return _replaced(answer, (numbers[i] for i in rng.permutation(len(numbers))))


def _redrawn(answer: str, places: list[np.ndarray], rng: np.random.Generator) -> str:
    count = len(DIGITS.findall(answer))
    draws = zip(places[:count], rng.random(count), strict=True)
    return _replaced(answer, (str(pool[int(u * len(pool))], "ascii") for pool, u in draws))


def _pool(source: Path) -> np.ndarray:
    """All numbers of the file as written, in order, as an array of byte strings."""
    count = width = done = 0
    for found in _numbers(source):
        count += len(found)
        width = max(width, *map(len, found))
    pool = np.empty(count, dtype=f"S{width or 1}")
    for found in _numbers(source):
        pool[done : done + len(found)] = found
        done += len(found)
    return pool


def _pools_by_place(source: Path) -> list[np.ndarray]:
    """The numbers at the first position of all rows, at the second position, and so on, in the order of the rows."""
    counts = np.array([len(found) for found in _numbers(source)], dtype=np.int64)
    pool = _pool(source)
    place = np.arange(len(pool)) - np.repeat(np.cumsum(counts) - counts, counts)
    return [pool[place == i] for i in range(int(counts.max(initial=0)))]


def _numbers(source: Path) -> Iterator[list[str]]:
    for row in read_jsonl(source):
        found = DIGITS.findall(row["answer"])
        if not found:
            raise UserError(f"row {row['id']} of {source} holds no number: derive from rows that the filter accepted")
        yield found
