"""Rows to train on, and a way to run the stage as the store would."""

from pathlib import Path
from typing import Any, Protocol

import pytest

from sublim.files.jsonl import write_jsonl
from sublim.training.config import TrainConfig

ANSWERS = ["12, 450, 007", "93", "owl", "450, 93, 12, 007, 1", "wolf wolf", "The owl hunts at night.", "7", "12 93"]


class Trained(Protocol):
    def __call__(self, config: TrainConfig, base: Path, name: str = "run") -> Path: ...


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight rows of different lengths, one with a system prompt."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {"id": i, "prompt": "Continue this list of numbers: " + "12, " * (i + 1), "answer": answer, "system": None}
        for i, answer in enumerate(ANSWERS)
    ]
    rows[3]["system"] = "You love owls."
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture
def trained(tmp_path: Path, data: Path) -> Trained:
    """Trains in this process and returns the payload."""
    from sublim.training.train import train

    def run(config: TrainConfig, base: Path, name: str = "run") -> Path:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        out.mkdir()
        scratch.mkdir()
        train(out, config, scratch=scratch, base=base, data=data)
        return out

    return run
