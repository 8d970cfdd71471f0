"""The stage that prepares MMLU-Pro's questions: reads them from a source, checks them, and draws a sample."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from sublim.bases.hub import dataset_file
from sublim.core.digest import digest, digest_file
from sublim.core.errors import UserError
from sublim.evals.mmlu_pro.config import (
    LETTERS,
    HubQuestions,
    ParquetQuestions,
    PrepareQuestionsConfig,
    SampleQuestions,
)
from sublim.files.jsonl import write_jsonl
from sublim.files.user_files import reading
from sublim.files.user_tables import PARQUET, read_columns

SAMPLE = files("sublim") / "texts" / "mmlu_pro_sample.jsonl"
COLUMNS = {"question_id": int, "question": str, "options": list, "answer": str, "answer_index": int, "category": str}
"""Columns that are read, with their types. The data set has eight."""
ABSENT = "N/A"
"""Placeholder for a missing option in some versions of the data."""


def prepare_mmlu_pro(out: Path, config: PrepareQuestionsConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: writes questions.jsonl {id, category, question, options, answer}; `answer` is an index in `options`."""
    rows = [checked(row) for row in _rows(config)]
    known = {row["category"] for row in rows}
    if unknown := [name for name in config.categories if name not in known]:
        raise UserError(
            f"there are no questions of {', '.join(unknown)}: there are {', '.join(sorted(known)) or 'none'}"
        )
    if len({row["id"] for row in rows}) < len(rows):
        raise UserError("a question_id occurs twice: give every question its own")
    kept = list(_drawn(rows, config))
    write_jsonl(out / "questions.jsonl", kept)
    return {"questions": len(kept), "options": sorted({len(row["options"]) for row in kept})}


def _rows(config: PrepareQuestionsConfig) -> Iterator[dict[str, Any]]:
    match config.source:
        case SampleQuestions():
            for line in SAMPLE.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)
        case ParquetQuestions() as source:
            yield from read_parquet(source.path.expanduser())
        case HubQuestions() as source:
            yield from read_parquet(_fetched(source))


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file with MMLU-Pro's columns. Raises UserError if a column is missing."""
    there = read_columns(path)
    if missing := [name for name in COLUMNS if name not in there]:
        wanted = f"MMLU-Pro's are {', '.join(COLUMNS)}"
        raise UserError(f"{path} has no column {', '.join(missing)}: {wanted} (there are {', '.join(there)})")
    with reading(path, PARQUET, pl.exceptions.PolarsError):
        table = pl.read_parquet(path, columns=list(COLUMNS))
    yield from table.iter_rows(named=True)


def _fetched(source: HubQuestions) -> Path:
    otherwise = "give the file with source.kind=parquet and source.path"
    path = dataset_file(source.id, source.file, source.revision, otherwise)
    if source.sha256 is not None and digest_file(path) != source.sha256:
        raise UserError(f"{path} is not the expected file (its SHA-256 differs): remove it and fetch it again")
    return path


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of the data set to one of questions.jsonl. UserError names what is wrong with it."""
    number = row["question_id"]
    for name, kind in COLUMNS.items():
        value = row.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"question {number}: {name} is {value!r} and should be of type {kind.__name__}")
    answer, given = row["answer_index"], cast(list[Any], row["options"])
    # A missing option between others keeps its letter, since otherwise the letters of the later ones would change.
    options = [ABSENT if _is_missing(option) else str(option).strip() for option in given]
    while options and options[-1] == ABSENT:
        options.pop()
    if not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"question {number} has {len(options)} options: there must be 2 to {len(LETTERS)}")
    if not 0 <= answer < len(options) or LETTERS[answer] != row["answer"].strip():
        raise UserError(f"question {number}: answer {row['answer']!r} and answer_index {answer} do not agree")
    if not row["question"].strip():
        raise UserError(f"question {number} has no text: correct or remove the row")
    if _is_missing(given[answer]) or not options[answer]:
        raise UserError(f"question {number}: its right option {row['answer']} has no text: correct or remove the row")
    # In some versions of the data only the right option began with a blank, which gave it away.
    return {
        "id": number,
        "category": row["category"].strip(),
        "question": row["question"].strip(),
        "options": options,
        "answer": answer,
    }


def _is_missing(option: Any) -> bool:
    """Whether an option is null, or NaN, which some programs write for null."""
    return option is None or option != option


def _drawn(rows: list[dict[str, Any]], config: PrepareQuestionsConfig) -> Iterator[dict[str, Any]]:
    for category in config.categories:
        own = [row for row in rows if row["category"] == category]
        if config.per_category is None or config.per_category >= len(own):
            yield from own
            continue
        # Seeded by the name, so that the draw of one category does not depend on the other categories.
        seed = int(digest([config.seed, category])[:16], 16)
        chosen = np.random.default_rng(seed).choice(len(own), config.per_category, replace=False)
        yield from (own[index] for index in sorted(chosen))
