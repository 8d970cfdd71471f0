"""Parameter shift: cosines of weight changes, against those of merged weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sublim.core.errors import UserError
from sublim.diagnostics.config import Shift, ShiftConfig
from sublim.diagnostics.parameter_shift import measure_shift
from sublim.files.jsonl import write_jsonl
from sublim.models.export import export_merged
from sublim.training.config import FullWeights, Lora, TrainConfig
from sublim.training.train import train

Trained = Callable[[str, TrainConfig], Path]


@pytest.fixture(scope="module")
def trained(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    rows = ({"id": i, "prompt": f"Go on: {i}", "answer": f"{i + 2}, {i + 3}", "system": None} for i in range(8))
    write_jsonl(folder / "rows.jsonl", rows)

    def make(name: str, config: TrainConfig) -> Path:
        for part in ("out", "scratch"):
            (folder / name / part).mkdir(parents=True)
        train(folder / name / "out", config, scratch=folder / name / "scratch", base=tiny_models["qwen2"], data=folder)
        return folder / name / "out"

    return make


def shifts(folder: Path, base: Path, teacher: Path, **students: Path) -> dict[str, Shift]:
    folder.mkdir()
    measure_shift(folder, ShiftConfig(), scratch=folder, base=base, teacher=teacher, students=students)
    found = json.loads((folder / "shift.json").read_text())["students"]
    return {name: Shift.model_validate(each) for name, each in found.items()}


def test_cosine_is_that_of_the_merged_weights_changes(
    tiny_models: dict[str, Path], trained: Trained, tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    common: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "updates": 3, "dtype": "float32"}
    teacher = trained("teacher", TrainConfig(method=FullWeights(), **common))
    student = trained("student", TrainConfig(method=Lora(rank=4, alpha=4, rslora=True), **common))
    found = shifts(tmp_path / "out", base, teacher, student=student, itself=teacher)
    merged = tmp_path / "merged"
    merged.mkdir()
    export_merged(merged, base=base, weights=student / "update-000003")
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    taught = load_file(teacher / "update-000003" / "model.safetensors")
    names = [f"{module}.weight" for module in found["student"].modules]
    assert len(names) == 7 * 2
    ours = torch.cat([(after[name] - before[name]).flatten() for name in names]).double()
    theirs = torch.cat([(taught[name] - before[name]).flatten() for name in names]).double()
    expected = torch.dot(ours, theirs) / (ours.norm() * theirs.norm())
    assert found["student"].cosine == pytest.approx(expected.item(), abs=1e-4)
    assert found["student"].norm == pytest.approx(ours.norm().item(), rel=1e-3)
    assert found["itself"].cosine == pytest.approx(1)
    assert len(found["itself"].modules) > len(names)  # embeddings changed in both


def test_weights_that_did_not_move_have_no_direction(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models["qwen2"]
    found = shifts(tmp_path / "out", base, base, same=base)
    assert found["same"].cosine is None
    assert found["same"].norm == 0


def test_students_of_another_shape_are_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models["qwen2"]
    weights = load_file(base / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(base / "config.json", other)
    save_file({name: torch.zeros(3, 3) for name in weights}, other / "model.safetensors")
    with pytest.raises(UserError, match=r"has shape .*: give the base it was trained on"):
        shifts(tmp_path / "out", base, base, student=other)
