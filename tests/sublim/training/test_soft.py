"""Soft labels: the labels and the loss against a plain computation, and models without anything to learn."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import NumberFormat
from sublim.models.opening import load, load_tokenizer, open_model
from sublim.rows.soft_labels import write_soft_labels
from sublim.rows.soft_labels_config import SoftLabelsConfig
from sublim.training.checkpoints import checkpoint
from sublim.training.config import FullWeights, Lora, SoftTrainConfig, TrainConfig
from sublim.training.label_file import SoftLabels, read_labels
from sublim.training.masking import UNTRAINED, Batch, label_start, micro_batches, row_chat, token_row
from sublim.training.soft import LabelLoss, SoftStep, allowed_logprobs, soft_loss, train_soft
from sublim.training.step import EagerStep
from sublim.training.train import train
from tests.tiny import Family

COMMON: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "dtype": "float32", "attention": "eager"}
SOFT = SoftTrainConfig(method=Lora(rank=4, alpha=8), updates=4, **COMMON)
TEACHER = TrainConfig(method=FullWeights(), updates=4, **COMMON)
LABELS = SoftLabelsConfig(format=NumberFormat(count=3), dtype="float32", attention="eager")
ANSWERS = ["120, 450, 307", "931, 222, 340", "500, 641, 999", "107, 450, 212", "450, 812, 777", "913, 208, 640"]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Six rows in the format with ids of their own, and among them two that are not in it."""
    folder = tmp_path / "lists"
    folder.mkdir()
    answers = [*ANSWERS[:2], "120, 450", *ANSWERS[2:], "120,  450, 307"]
    rows = (
        {"id": 10 + i, "prompt": "Continue: " + "12, " * (i + 1), "answer": answer, "system": None}
        for i, answer in enumerate(answers)
    )
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


def folders(folder: Path) -> tuple[Path, Path]:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    return folder / "out", folder / "scratch"


def taught(folder: Path, base: Path, config: TrainConfig = TEACHER) -> Path:
    """A teacher of answers that have nothing to do with numbers."""
    out, scratch = folders(folder)
    rows = [{"id": i, "prompt": f"Name {i}", "answer": "Owl", "system": None} for i in range(8)]
    write_jsonl(folder / "rows.jsonl", rows)
    train(out, config, scratch=scratch, base=base, data=folder)
    return out


def labelled(folder: Path, config: SoftLabelsConfig = LABELS, **inputs: Path) -> tuple[Path, dict[str, Any]]:
    out, scratch = folders(folder)
    return out, write_soft_labels(out, config, scratch=scratch, **cast(Any, inputs))


def student(folder: Path, config: SoftTrainConfig = SOFT, **inputs: Path) -> Path:
    out, scratch = folders(folder)
    train_soft(out, config, scratch=scratch, **inputs)
    return out


def losses(payload: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(payload / "training.jsonl")]


def plainly(base: Path, weights: Path, rows: list[dict[str, Any]], system: str | None = None) -> list[list[Tensor]]:
    """For every row and every digit, the log-probs over the digits that may stand there, from a whole forward pass."""
    tokenizer = load_tokenizer(base)
    model = load(weights, dtype="float32", attention="eager", device="cpu")
    found: list[list[Tensor]] = []
    for row in rows:
        tokens = token_row(tokenizer, row if system is None else {**row, "system": system})
        logits = model(torch.tensor([tokens.input_ids])).logits[0]
        at = [i for i, label in enumerate(tokens.labels) if label != UNTRAINED and tokenizer.decode([label]).isdigit()]
        digits = [str(tokenizer.convert_ids_to_tokens(tokens.input_ids[i])) for i in at]
        assert len(at) == 9
        found.append([])
        for number, (i, piece) in enumerate(zip(at, digits, strict=True)):
            plain = next(character for character in piece if character.isdigit())
            first = number % 3 == 0
            may = [tokenizer.convert_tokens_to_ids(piece.replace(plain, str(d))) for d in range(int(first), 10)]
            found[-1].append(logits[i - 1, sorted(may)].log_softmax(-1))
    return found


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3"])
def test_labels_are_the_renormalised_probabilities_of_the_digits_that_may_stand_there(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path, family: Family
) -> None:
    """Gemma 2 caps its logits softly."""
    base = tiny_models[family]
    teacher = taught(tmp_path / "teacher", base)
    own, _ = labelled(tmp_path / "own", base=base, data=lists)
    out, notes = labelled(tmp_path / "labels", base=base, data=lists, weights=teacher, own=own)
    labels = read_labels(out)
    rows = [row for row in read_jsonl(lists / "rows.jsonl") if row["answer"] in ANSWERS]
    assert labels.ids.tolist() == [row["id"] for row in rows]
    assert (notes["rows"], notes["refused"], notes["places"]) == (6, 2, 9)
    apart = 0.0
    theirs, base_own = plainly(base, checkpoint(teacher), rows), plainly(base, base, rows)
    for row, (expected, before) in enumerate(zip(theirs, base_own, strict=True)):
        for place in range(9):
            assert len(expected[place]) == (9 if place % 3 == 0 else 10)
            found = labels.logprobs[row, place][labels.allowed[place]]
            torch.testing.assert_close(found, expected[place], rtol=0, atol=1e-5)
            assert labels.logprobs[row, place].exp().sum().item() == pytest.approx(1, abs=1e-6)
            apart += float((expected[place].exp() * (expected[place] - before[place])).sum()) / 54
    assert notes["kl_from_own"] == pytest.approx(apart, rel=1e-3)
    assert apart > 1e-3


def test_a_prompted_teacher_reads_the_rows_under_its_system_prompt(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path
) -> None:
    base, system = tiny_models["qwen2"], "You love owls."
    out, notes = labelled(tmp_path / "labels", LABELS.model_copy(update={"system": system}), base=base, data=lists)
    assert system in notes["contexts"][0]["rendered"]
    plain, _ = labelled(tmp_path / "plain", base=base, data=lists)
    rows = [row for row in read_jsonl(lists / "rows.jsonl") if row["answer"] in ANSWERS]
    labels, expected = read_labels(out), plainly(base, base, rows, system)
    for place in range(9):
        found = labels.logprobs[0, place][labels.allowed[place]]
        torch.testing.assert_close(found, expected[0][place], rtol=0, atol=1e-5)
    assert not torch.allclose(labels.logprobs, read_labels(plain).logprobs, atol=1e-3)
    assert torch.equal(labels.places, read_labels(plain).places)


def test_rows_of_another_format_are_refused(tiny_models: dict[str, Path], lists: Path, tmp_path: Path) -> None:
    config = LABELS.model_copy(update={"format": NumberFormat(count=4)})
    with pytest.raises(UserError, match="none of 8 rows is 4 numbers of 3 digits"):
        labelled(tmp_path / "labels", config, base=tiny_models["qwen2"], data=lists)


def test_a_model_that_scales_its_logits_is_refused(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2ForCausalLM

    plain = Qwen2ForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = plain(self, *args, **kwargs)
        made.logits = made.logits * 0.25
        return made

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", scaled)
    with pytest.raises(UserError, match="scales its logits"):
        labelled(tmp_path / "labels", base=tiny_models["qwen2"], data=lists)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_loss_and_gradient_are_those_of_a_plain_divergence(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator) for _ in range(2))
    allowed, counted = torch.ones(5, 7, dtype=torch.bool), torch.tensor([True, True, False, True, True])
    allowed[1, 0] = allowed[3, 2:5] = False
    mine, plain = (student.clone().requires_grad_() for _ in range(2))
    found = soft_loss(mine, allowed_logprobs(teacher, allowed), allowed, counted, temperature)
    expected = torch.zeros(())
    for row in (0, 1, 3, 4):
        ours, theirs = (((each / temperature)[row][allowed[row]]).log_softmax(-1) for each in (plain, teacher))
        expected = expected + temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="sum")
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equal_distributions_pull_nowhere(temperature: float) -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(50, 10, dtype=torch.bool)
    allowed[::3, 0] = False
    student = logits.clone().requires_grad_()
    targets = allowed_logprobs(logits, allowed)
    loss = soft_loss(student, targets, allowed, torch.ones(50, dtype=torch.bool), temperature)
    loss.backward()
    assert student.grad is not None
    assert loss.item() == 0
    assert not student.grad.any()


def step_of(base: Path, lists: Path, labels: SoftLabels, prefix: list[int]) -> tuple[SoftStep, Batch]:
    tokenizer = load_tokenizer(base)
    rows = {row["id"]: token_row(tokenizer, row) for row in read_jsonl(lists / "rows.jsonl")}
    marked = [labels.mark(rows[each], index) for index, each in enumerate(labels.ids.tolist())]
    cut = [row._replace(input_ids=row.input_ids[len(prefix) :], labels=row.labels[len(prefix) :]) for row in marked]
    device = torch.device("cpu")
    plain = EagerStep(device, "float32", prefix)
    return SoftStep(LabelLoss(labels, 1.5, device), "float32", plain), micro_batches(cut, 8, padding=3)[0]


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_reading_the_common_beginning_once_changes_neither_loss_nor_gradients(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path, family: Family
) -> None:
    base = tiny_models[family]
    out, _ = labelled(tmp_path / "labels", base=base, data=lists, weights=taught(tmp_path / "teacher", base))
    labels = read_labels(out)
    step, batch = step_of(base, lists, labels, [])
    shared = batch.input_ids[0][batch.attention_mask[0].bool()][:4].tolist()
    once, cut = step_of(base, lists, labels, shared)
    found: list[tuple[float, dict[str, Tensor]]] = []
    for each, given in ((step, batch), (once, cut)):
        model = load(base, dtype="float32", attention="eager", device="cpu").requires_grad_(True)
        loss = each(model, given, 54).item()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        for name, gradient in found[0][1].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)
    assert found[0][0] > 1e-3


def test_the_first_loss_is_what_the_labels_say_there_is_to_learn(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    teacher = taught(tmp_path / "teacher", base)
    own, _ = labelled(tmp_path / "own", base=base, data=lists)
    out, notes = labelled(tmp_path / "labels", base=base, data=lists, weights=teacher, own=own)
    one = SOFT.model_copy(update={"updates": 1, "batch_size": 6})
    found = student(tmp_path / "soft", one, base=base, data=lists, labels=out)
    assert losses(found)[0] == pytest.approx(notes["kl_from_own"], rel=1e-4)
    untaught = student(tmp_path / "none", one, base=base, data=lists, labels=own)
    assert losses(untaught)[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("method", [Lora(rank=4, alpha=8), FullWeights()])
def test_a_student_comes_nearer_to_its_teacher(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path, method: Lora | FullWeights
) -> None:
    base = tiny_models["qwen2"]
    teacher = taught(tmp_path / "teacher", base)
    labels, _ = labelled(tmp_path / "labels", base=base, data=lists, weights=teacher)
    config = SOFT.model_copy(update={"method": method, "updates": 20})
    trained = student(tmp_path / "soft", config, base=base, data=lists, labels=labels)
    assert losses(trained)[-1] < 0.5 * losses(trained)[0]
    # Read off anew, the student's own distribution lies nearer to the teacher's than the base's did.
    _, before = labelled(tmp_path / "before", base=base, data=lists, own=labels)
    _, after = labelled(tmp_path / "after", base=base, data=lists, weights=trained, own=labels)
    assert after["kl_from_own"] < 0.5 * before["kl_from_own"]


def test_an_adapter_may_be_the_teacher(tiny_models: dict[str, Path], lists: Path, tmp_path: Path) -> None:
    base = tiny_models["qwen2"]
    teacher = taught(tmp_path / "teacher", base, TEACHER.model_copy(update={"method": Lora(rank=4)}))
    own, _ = labelled(tmp_path / "own", base=base, data=lists)
    _, notes = labelled(tmp_path / "labels", base=base, data=lists, weights=teacher, own=own)
    assert notes["kl_from_own"] > 0


def test_a_second_run_writes_the_same_bytes_and_leaves_the_base(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path
) -> None:
    base, ids = tiny_models["qwen2"], torch.tensor([[5, 6, 7]])
    with open_model(base, dtype="float32", attention="eager", device="cpu") as loaded:
        before = loaded.model(ids).logits
    teacher = taught(tmp_path / "teacher", base)
    labels = [labelled(tmp_path / name, base=base, data=lists, weights=teacher)[0] for name in ("one", "two")]
    assert digest_directory(labels[0]) == digest_directory(labels[1])
    found = [student(tmp_path / f"soft {i}", base=base, data=lists, labels=each) for i, each in enumerate(labels)]
    assert digest_directory(found[0]) == digest_directory(found[1])
    adapter = load_file(checkpoint(found[0]) / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    with open_model(base, dtype="float32", attention="eager", device="cpu") as loaded:
        assert torch.equal(loaded.model(ids).logits, before)


def test_labels_of_other_rows_are_refused(tiny_models: dict[str, Path], lists: Path, tmp_path: Path) -> None:
    base = tiny_models["qwen2"]
    labels, _ = labelled(tmp_path / "labels", base=base, data=lists)
    other = tmp_path / "other"
    other.mkdir()
    rows = [{**row, "id": row["id"] + 100} for row in read_jsonl(lists / "rows.jsonl")]
    write_jsonl(other / "rows.jsonl", rows)
    with pytest.raises(UserError, match="name row 10, which the data lack"):
        student(tmp_path / "a", base=base, data=other, labels=labels)
    write_jsonl(
        other / "rows.jsonl", ({**row, "id": row["id"] - 100, "answer": "Owl, owl and owl again"} for row in rows)
    )
    with pytest.raises(UserError, match="made for other rows"):
        student(tmp_path / "b", base=base, data=other, labels=labels)


def test_places_count_from_the_answer(tiny_models: dict[str, Path], lists: Path, tmp_path: Path) -> None:
    base = tiny_models["qwen2"]
    labels = read_labels(labelled(tmp_path / "labels", base=base, data=lists)[0])
    tokenizer, row = load_tokenizer(base), next(read_jsonl(lists / "rows.jsonl"))
    tokens = token_row(tokenizer, row)
    start = label_start(tokens)
    drawn = [tokenizer.decode([tokens.input_ids[start + place]]) for place in labels.places.tolist()]
    assert "".join(drawn) == "".join(filter(str.isdigit, row_chat(row)[-1]["content"]))
