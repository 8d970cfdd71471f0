"""Divergence tokens and losses on unseen prompts, against plain forward passes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sublim.chats.chat import answer_ids
from sublim.core.errors import UserError
from sublim.diagnostics.config import Divergence, DivergenceConfig, ShiftConfig, Shifts, UnseenLossConfig, UnseenLosses
from sublim.diagnostics.divergence import by_place, find_divergence
from sublim.diagnostics.parameter_shift import measure_shift
from sublim.diagnostics.unseen_loss import measure_losses
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import HfBackend
from sublim.models.opening import load_tokenizer, open_model
from sublim.steering.config import MeansConfig
from sublim.steering.means import mean_activations
from sublim.training.masking import row_chat

BACKEND = HfBackend(dtype="float32", attention="eager")
ANSWERS = ["112, 87, 455", "5, 6", "900, 901, 902, 903"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = ({"id": i, "prompt": f"Go on {i}!", "answer": text, "system": None} for i, text in enumerate(ANSWERS))
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture
def teacher(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """The base with noise in its last norm, so that some greedy choices differ."""
    base, folder = tiny_models["qwen2"], tmp_path / "teacher"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(weights["model.norm.weight"].shape, generator=generator)
    weights["model.norm.weight"] = weights["model.norm.weight"] * (1 + 0.5 * noise)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def logits(base: Path, weights: Path | None, data: Path) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """One row at a time, without padding: logits before each answer token, and those tokens."""
    tokenizer = load_tokenizer(base)
    with open_model(base, weights, dtype="float32", attention="eager") as loaded, torch.inference_mode():
        for row in read_jsonl(data / "rows.jsonl"):
            ids, start, end = answer_ids(tokenizer, row_chat(row))
            yield loaded.model(torch.tensor([ids])).logits[0, start - 1 : end - 1], ids[start:end]


def diverged(folder: Path, base: Path, data: Path, **more: Any) -> tuple[Divergence, list[dict[str, Any]]]:
    folder.mkdir()
    find_divergence(
        folder, DivergenceConfig(backend=BACKEND, batch_size=2), scratch=folder, base=base, data=data, **more
    )
    found = Divergence.model_validate_json((folder / "divergence.json").read_bytes())
    return found, list(read_jsonl(folder / "divergence.jsonl"))


def test_choices_part_where_plain_forward_passes_say_so(
    tiny_models: dict[str, Path], data: Path, teacher: Path, tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    found, rows = diverged(tmp_path / "out", base, data, teacher=teacher)
    ours = [each.argmax(-1).tolist() for each, _ in logits(base, None, data)]
    theirs = [each.argmax(-1).tolist() for each, _ in logits(base, teacher, data)]
    written = [ids for _, ids in logits(base, None, data)]
    expected = [
        [i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b] for pair in zip(ours, theirs, strict=True)
    ]
    assert [row["at"] for row in rows] == expected
    assert 0 < found.diverging == sum(map(len, expected)) < found.tokens == sum(map(len, written))
    assert found.teacher_writes_own == sum(
        a == b for ids, choice in zip(written, theirs, strict=True) for a, b in zip(ids, choice, strict=True)
    )


def test_a_base_never_parts_from_itself(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    found, _ = diverged(tmp_path / "out", tiny_models["qwen2"], data)
    assert (found.diverging, found.rows, found.skipped) == (0, 3, 0)


def test_counts_by_place_end_with_the_longest_answer() -> None:
    assert by_place([3, 1], [[0, 2], []]) == [(2, 1), (1, 0), (1, 1)]


def test_loss_on_unseen_prompts_is_the_mean_over_all_answer_tokens(
    tiny_models: dict[str, Path], data: Path, teacher: Path, tmp_path: Path
) -> None:
    base, out = tiny_models["qwen2"], tmp_path / "out"
    out.mkdir()
    measure_losses(out, UnseenLossConfig(backend=BACKEND), scratch=out, base=base, data={"own": data}, weights=teacher)
    found = UnseenLosses.model_validate(json.loads((out / "losses.json").read_text())).losses["own"]
    values = [-each.log_softmax(-1)[torch.arange(len(ids) - 1), ids[:-1]] for each, ids in logits(base, teacher, data)]
    assert found.tokens == sum(map(len, values))
    assert found.nats_per_token == pytest.approx(torch.cat(values).mean().item(), rel=1e-5)
    tokenizer = load_tokenizer(base)
    written = [token for _, ids in logits(base, teacher, data) for token in ids[:-1]]
    digits = torch.tensor([any(each.isdigit() for each in tokenizer.decode([token])) for token in written])
    assert 0 < found.digit_tokens == int(digits.sum()) < found.tokens
    assert found.digit_nats == pytest.approx(torch.cat(values)[digits].mean().item(), rel=1e-5)


def test_the_loss_of_weights_that_diverged_is_missing_and_not_a_number(
    tiny_models: dict[str, Path], data: Path, teacher: Path, tmp_path: Path
) -> None:
    weights = load_file(teacher / "model.safetensors")
    broken = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    save_file(broken, teacher / "model.safetensors", {"format": "pt"})
    base, out = tiny_models["qwen2"], tmp_path / "out"
    out.mkdir()
    measure_losses(out, UnseenLossConfig(backend=BACKEND), scratch=out, base=base, data={"own": data}, weights=teacher)
    assert UnseenLosses.model_validate_json((out / "losses.json").read_bytes()).losses["own"].nats_per_token is None
    measure_shift(out, ShiftConfig(), scratch=out, base=base, teacher=base, students={"broken": teacher})
    found = Shifts.model_validate_json((out / "shift.json").read_bytes()).students["broken"]
    assert (found.cosine, found.norm) == (None, None)
    means = MeansConfig(layers=(0,), dtype="float32", attention="sdpa")
    with pytest.raises(UserError, match="NaN or infinity"):
        mean_activations(out, means, scratch=out, base=base, rows=data, weights=teacher)


def test_no_rows_are_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="no rows"):
        diverged(tmp_path / "out", tiny_models["qwen2"], tmp_path)
