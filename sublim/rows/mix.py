"""Mixing two sets of rows in a stated share, so that a model trained on one goes on doing what the other shows."""

from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.rows.config import MixConfig


def mix_rows(out: Path, config: MixConfig, *, scratch: Path, rows: Path, rehearsal: Path) -> dict[str, Any]:
    """Stage: writes config.rows rows to rows.jsonl: the stated share of them from `rehearsal`, the others from `rows`.

    Each side gives its rows in an order drawn from the seed, and again from the first when they are used up, so that
    no row of a side comes twice more often than another. All are then shuffled and numbered anew. Notes: how many came
    from each side, and how often the most frequent row of each does.
    """
    rng = np.random.default_rng(config.seed)
    rehearsed = round(config.share * config.rows)
    sides = [
        _taken(folder, wanted, rng) for folder, wanted in ((rows, config.rows - rehearsed), (rehearsal, rehearsed))
    ]
    mixed = list(chain.from_iterable(taken for taken, _ in sides))
    order = rng.permutation(len(mixed)).tolist()
    write_jsonl(out / "rows.jsonl", ({**mixed[place], "id": number} for number, place in enumerate(order)))
    (_, often), (_, rehearsed_often) = sides
    return {
        "rows": config.rows - rehearsed,
        "rehearsal": rehearsed,
        "most_often": often,
        "rehearsal_most_often": rehearsed_often,
    }


def _taken(folder: Path, wanted: int, rng: np.random.Generator) -> tuple[Sequence[dict[str, Any]], int]:
    """`wanted` rows in a random order, and how often the most frequent of them is there."""
    every = [{name: row[name] for name in ("prompt", "answer", "system")} for row in read_jsonl(folder / "rows.jsonl")]
    if not every and wanted:
        raise UserError(f"{folder} holds no rows to mix: give the payload of a stage that wrote some")
    order = rng.permutation(len(every)).tolist()
    return [every[place] for place in islice(cycle(order), wanted)], -(-wanted // len(every)) if every else 0
