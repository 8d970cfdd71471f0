"""Soft labels: the loss and its gradient against a plain computation, and controls that stay at the base."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sublim.core.digest import digest_directory
from sublim.files.jsonl import read_jsonl
from sublim.models.opening import load, load_tokenizer, open_model
from sublim.training.checkpoints import checkpoint
from sublim.training.config import FullWeights, Lora, SoftTrainConfig, TrainConfig
from sublim.training.masking import UNTRAINED, token_rows
from sublim.training.soft import soft_loss, train_soft
from tests.sublim.training.conftest import Trained

COMMON: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "updates": 4, "dtype": "float32", "attention": "eager"}
SOFT = SoftTrainConfig(method=Lora(rank=4, alpha=8), **COMMON)
TEACHER = TrainConfig(method=FullWeights(), **COMMON)


def taught(folder: Path, config: SoftTrainConfig, base: Path, data: Path, teacher: Path | None) -> Path:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    train_soft(folder / "out", config, scratch=folder / "scratch", base=base, data=data, teacher=teacher)
    return folder / "out"


def losses(payload: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(payload / "training.jsonl")]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_loss_and_gradient_are_those_of_a_plain_divergence(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator) for _ in range(2))
    mine, plain = (student.clone().requires_grad_() for _ in range(2))
    found = soft_loss(mine, teacher, temperature)
    theirs = (teacher / temperature).softmax(-1)
    expected = temperature**2 * (theirs * (theirs.log() - (plain / temperature).log_softmax(-1))).sum()
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_equal_logits_pull_nowhere() -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    student = logits.clone().requires_grad_()
    soft_loss(student, logits, 1.0).backward()
    assert student.grad is not None
    assert not student.grad.any()


def test_first_loss_is_the_divergence_of_teacher_and_base_on_the_answers(
    tiny_models: dict[str, Path], data: Path, trained: Trained, tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    teacher = trained(TEACHER, base, "teacher")
    one = SOFT.model_copy(update={"updates": 1, "batch_size": 8})
    found = losses(taught(tmp_path / "soft", one, base, data, teacher))[0]
    rows = token_rows(load_tokenizer(base), read_jsonl(data / "rows.jsonl"), max_length=512)
    models = [load(each, dtype="float32", attention="eager", device="cpu") for each in (base, checkpoint(teacher))]
    total, tokens = 0.0, 0
    for row in rows:
        learnt = torch.tensor(row.labels[1:]) != UNTRAINED
        ours, theirs = (model(torch.tensor([row.input_ids])).logits[0, :-1][learnt].log_softmax(-1) for model in models)
        total += F.kl_div(ours, theirs, log_target=True, reduction="sum").item()
        tokens += int(learnt.sum())
    assert found == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("method", [Lora(rank=4, alpha=8), FullWeights()])
def test_a_student_comes_nearer_to_its_teacher(
    tiny_models: dict[str, Path], data: Path, trained: Trained, tmp_path: Path, method: Lora | FullWeights
) -> None:
    base = tiny_models["qwen2"]
    config = SOFT.model_copy(update={"method": method, "updates": 20})
    found = losses(taught(tmp_path / "soft", config, base, data, trained(TEACHER, base, "teacher")))
    assert found[-1] < 0.5 * found[0]


def test_a_teacher_may_be_an_adapter(
    tiny_models: dict[str, Path], data: Path, trained: Trained, tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    teacher = trained(TEACHER.model_copy(update={"method": Lora(rank=4)}), base, "teacher")
    assert losses(taught(tmp_path / "soft", SOFT, base, data, teacher))[0] > 0


def test_a_control_that_learns_the_bases_logits_stays_at_the_base(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    out = taught(tmp_path / "soft", SOFT, base, data, None)
    assert losses(out) == [0.0] * 4
    adapter = load_file(checkpoint(out) / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)


def test_soft_training_again_writes_the_same_bytes_and_leaves_the_base(
    tiny_models: dict[str, Path], data: Path, trained: Trained, tmp_path: Path
) -> None:
    base = tiny_models["llama"]
    teacher = trained(TEACHER, base, "teacher")
    ids = torch.tensor([[5, 6, 7]])
    with open_model(base, dtype="float32", attention="eager", device="cpu") as loaded:
        before = loaded.model(ids).logits
    once = taught(tmp_path / "once", SOFT, base, data, teacher)
    again = taught(tmp_path / "again", SOFT, base, data, teacher)
    assert digest_directory(once) == digest_directory(again)
    with open_model(base, dtype="float32", attention="eager", device="cpu") as loaded:
        assert torch.equal(loaded.model(ids).logits, before)
