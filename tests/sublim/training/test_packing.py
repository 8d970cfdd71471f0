"""Packed rows: loss and gradients equal those of padded rows, no row attends to another, arguments of the kernel."""

import logging
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, modeling_flash_attention_utils

from sublim.core import hardware
from sublim.core.errors import UserError
from sublim.core.hardware import Gpu
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import NumberFormat
from sublim.inference.network import set_attention
from sublim.rows.soft_labels import write_soft_labels
from sublim.rows.soft_labels_config import SoftLabelsConfig
from sublim.training import config as training
from sublim.training.config import FullWeights, Lora, SoftTrainConfig, TrainConfig
from sublim.training.label_file import SoftLabels
from sublim.training.masking import UNTRAINED, Batch, TokenRow, collate, packed
from sublim.training.soft import LabelLoss, PackedSoftStep, SoftStep, train_soft
from sublim.training.step import EagerStep, PackedStep, Step, packed_logits
from sublim.training.train import check_attention, chosen_step, opened, train_on
from tests.sublim.training.conftest import Trained
from tests.sublim.training.test_step import rows_of
from tests.tiny import FAMILIES, Family

CPU = torch.device("cpu")
WINDOW = 9
"""Width of a sliding window, which is shorter than any row."""
A6000 = Gpu("A6000", 48 << 30, (8, 6))


class Call(NamedTuple):
    """What one layer handed to flash-attention's kernel."""

    dtypes: set[torch.dtype]
    bounds: Tensor
    longest: int
    window: tuple[int, int]
    softcap: float


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """transformers' own path to flash-attention, with a plain implementation in place of the kernel."""
    calls: list[Call] = []

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> Tensor:
        assert causal
        assert softmax_scale is not None
        assert cu_seqlens_q is cu_seqlens_k
        assert dropout_p == 0
        assert (type(max_seqlen_q), max_seqlen_q) == (int, max_seqlen_k)  # a tensor would be waited for
        calls.append(Call({q.dtype, k.dtype, v.dtype}, cu_seqlens_q, max_seqlen_q, window_size, softcap))
        rows: list[Tensor] = []
        for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
            queries, keys, values = (each[start:end].transpose(0, 1) for each in (q, k, v))
            keys, values = (each.repeat_interleave(len(queries) // len(each), 0) for each in (keys, values))
            scores = queries @ keys.mT * softmax_scale
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            back = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = (back >= 0) & (back <= window_size[0] if window_size[0] >= 0 else back >= 0)
            rows.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values).transpose(0, 1))
        return torch.cat(rows)

    def padded_kernel(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("the kernel for one sequence was called: rows would see one another")

    functions = (padded_kernel, flash_attn_varlen_func, None, None, None)
    arguments = modeling_flash_attention_utils._lazy_define_process_function(flash_attn_varlen_func)
    monkeypatch.setattr(
        modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *args, **kwargs: (functions, arguments)
    )
    return calls


def model_of(base: Path, attention: str, adapter: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model with short sliding windows, all its weights or a random adapter training."""
    windows = {"sliding_window": WINDOW} if "gemma" in base.name else {}
    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=dtype, **windows)
    set_attention(model, attention)
    if not adapter:
        return model.requires_grad_(True)
    torch.manual_seed(3)
    described = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, described)


def unequal(base: Path, data: Path) -> Batch:
    rows = rows_of(base, data)
    assert len({len(row.input_ids) for row in rows}) > 4
    assert min(len(row.input_ids) for row in rows) > WINDOW
    return collate(rows, padding=3)


def folders(parent: Path, name: str) -> tuple[Path, Path]:
    out, scratch = parent / name, parent / f"{name}-scratch"
    out.mkdir()
    scratch.mkdir()
    return out, scratch


def choose_packed(*_: object) -> PackedStep:
    return PackedStep(CPU, "float32")


def learnt(model: Any, step: Step, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    loss = step(model, batch, 10).item()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_rows_are_packed_without_padding_and_without_their_last_tokens():
    rows = [TokenRow([5, 6, 7, 8, 9], [-100, -100, -100, 8, 9]), TokenRow([4, 3, 2], [-100, 3, -100])]
    batch = packed(collate(rows, padding=0))
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0]]
    assert (batch.bounds.tolist(), batch.bounds.dtype, batch.longest) == ([0, 4, 5], torch.int32, 4)
    assert (batch.places.tolist(), batch.labels.tolist()) == ([2, 3, 4], [8, 9, 3])


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_neither_loss_nor_gradients(
    tiny_models: dict[str, Path], data: Path, kernel: list[Call], family: Family, attention: str, adapter: bool
):
    """Soft caps and sliding windows included. sdpa knows no soft cap, but both sides leave it out alike."""
    base = tiny_models[family]
    batch = unequal(base, data)
    plain = "sdpa" if attention == "sdpa" else "eager"
    whole, expected = learnt(model_of(base, plain, adapter), EagerStep(CPU, "float32", ()), batch)
    loss, found = learnt(model_of(base, attention, adapter), PackedStep(CPU, "float32"), batch)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    assert len(kernel) == (2 if attention == "flash_attention_2" else 0)


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_packing_changes_neither_loss_nor_gradients_of_soft_labels(
    tiny_models: dict[str, Path], data: Path, kernel: list[Call], attention: str
):
    """Labels at every other token of the answers, over eight tokens of which some are not allowed everywhere."""
    base = tiny_models["gemma2"]
    batch, drawn = unequal(base, data), count()
    for row in batch.labels:
        for place in (row != UNTRAINED).nonzero().flatten().tolist():
            row[place] = next(drawn) if place % 2 else UNTRAINED
    allowed = torch.ones(3, 8, dtype=torch.bool)
    allowed[1, :4] = False
    table = torch.randn(next(drawn) // 3 + 1, 3, 8, generator=torch.Generator().manual_seed(5))
    logprobs = table.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    labels = SoftLabels(torch.arange(len(table)), torch.arange(3), torch.arange(20, 28), allowed, logprobs)
    loss_of, plain = LabelLoss(labels, 1.5, CPU), EagerStep(CPU, "float32", ())
    whole, expected = learnt(model_of(base, "eager"), SoftStep(loss_of, "float32", plain), batch)
    loss, found = learnt(model_of(base, attention), PackedSoftStep(loss_of, "float32", plain), batch)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert whole > 0.1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_no_row_sees_another(
    tiny_models: dict[str, Path], data: Path, kernel: list[Call], family: Family, attention: str
):
    base = tiny_models[family]
    batch = unequal(base, data)
    row, changed = 2, batch.input_ids.clone()
    changed[row] = torch.where(batch.attention_mask[row].bool(), 20 + changed[row] % 7, changed[row])
    model = model_of(base, attention).eval()
    with torch.no_grad():
        before = packed_logits(model, packed(batch))
        after = packed_logits(model, packed(batch._replace(input_ids=changed)))
    owner = (batch.labels != UNTRAINED).nonzero()[:, 0]
    moved = (before - after).abs().amax(-1)
    assert (moved[owner == row] > 1e-3).any()
    assert moved[owner != row].max() == 0


def test_soft_caps_windows_and_the_rows_bounds_reach_the_kernel(
    tiny_models: dict[str, Path], data: Path, kernel: list[Call]
):
    batch = unequal(tiny_models["gemma2"], data)
    model = model_of(tiny_models["gemma2"], "flash_attention_2")
    PackedStep(CPU, "float32")(model, batch, 10)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert [call.window for call in kernel] == [(WINDOW - 1, WINDOW - 1), (-1, -1)]
    assert {call.softcap for call in kernel} == {model.config.attn_logit_softcapping}
    lengths = batch.attention_mask.sum(1) - 1
    assert all(call.bounds.diff().tolist() == lengths.tolist() for call in kernel)
    assert {call.longest for call in kernel} == {int(lengths.max())}


@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_the_kernel_gets_bfloat16_whatever_the_frozen_weights_are(
    tiny_models: dict[str, Path], data: Path, kernel: list[Call], family: Family, frozen: torch.dtype
):
    """It has no float32: rotary embeddings and norms of float32 weights must not carry it there under autocast."""
    model = model_of(tiny_models[family], "flash_attention_2", adapter=True, dtype=frozen)
    PackedStep(CPU, "bfloat16")(model, unequal(tiny_models[family], data), 10)
    assert [call.dtypes for call in kernel] == [{torch.bfloat16}] * 2


def test_flash_attention_trains_packed_and_no_other_does(tiny_models: dict[str, Path], data: Path):
    base, config = tiny_models["llama"], TrainConfig(updates=1, dtype="bfloat16")
    rows, shape = rows_of(base, data), AutoConfig.from_pretrained(base)
    step = chosen_step(config, rows, "flash_attention_2", shape, 4)
    assert isinstance(step, PackedStep)
    assert (len(step.prefix), step.device.type, step.autocast) == (0, "cuda", True)
    for attention in ("sdpa", "eager"):
        assert not isinstance(chosen_step(config, rows, attention, shape, 4), PackedStep)


def test_a_packed_run_is_the_padded_one(tiny_models: dict[str, Path], data: Path, trained: Trained, tmp_path: Path):
    """Through the training loop, in micro-batches of another size, with an adapter."""
    config = TrainConfig(
        method=Lora(rank=4, alpha=8), lr=1e-3, batch_size=4, updates=4, dtype="float32", attention="eager"
    )
    expected = list(read_jsonl(trained(config, tiny_models["gemma2"]) / "training.jsonl"))
    out, scratch = folders(tmp_path, "packed")
    small = config.model_copy(update={"micro_batch": 3})
    notes = train_on(opened, choose_packed, out, small, scratch=scratch, base=tiny_models["gemma2"], data=data)
    assert notes["packed"] is True
    for found, row in zip(read_jsonl(out / "training.jsonl"), expected, strict=True):
        assert found == {name: pytest.approx(value, rel=1e-3) for name, value in row.items()}


@pytest.mark.parametrize(
    ("card", "flash", "dtype", "why"),
    [
        (None, True, "bfloat16", "it needs an NVIDIA GPU"),
        (Gpu("T4", 16 << 30, (7, 5)), True, "bfloat16", "it needs compute capability 8.0, T4 has 7.5"),
        (A6000, True, "float32", "it has no float32 kernels"),
        (A6000, False, "bfloat16", "flash-attn is not installed"),
    ],
)
def test_where_flash_attention_cannot_run_auto_is_sdpa_and_asking_for_it_is_refused(
    tiny_models: dict[str, Path],
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    card: Gpu | None,
    flash: bool,
    dtype: Any,
    why: str,
):
    for module in (hardware, training):
        monkeypatch.setattr(module, "gpu", lambda: card)
    monkeypatch.setattr(hardware, "find_spec", lambda name: object() if flash else None)
    asked = TrainConfig(updates=1, dtype=dtype, attention="flash_attention_2")
    assert asked.model_copy(update={"attention": "auto"}).resolved().attention == "sdpa"
    with pytest.raises(UserError, match=f"^flash_attention_2 cannot run here: {why}.*; or set attention to sdpa$"):
        trained(asked, tiny_models["llama"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    with caplog.at_level(logging.INFO):
        check_attention("sdpa", dtype)
    assert (f"attention is sdpa, not flash-attention: {why}" in caplog.text) == (card is not None)


def test_auto_takes_flash_attention_that_imports_and_a_broken_build_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in (hardware, training):
        monkeypatch.setattr(module, "gpu", lambda: A6000)
    assert TrainConfig(updates=1).resolved().attention == "flash_attention_2"
    with pytest.raises(UserError, match=r"does not import \(undefined symbol: _ZN3c10\): build it again"):
        check_attention("flash_attention_2", "bfloat16")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("method", "rate"),
    [
        (Lora(rank=4, alpha=8), 5e-4),
        (Lora(rank=4, alpha=8, frozen_base="bfloat16"), 5e-4),
        (FullWeights(), 1e-5),
    ],
)
def test_flash_attention_trains_packed_as_sdpa_does_padded(
    smollm2: Path, data: Path, tmp_path: Path, method: Lora | FullWeights, rate: float
):
    pytest.importorskip("flash_attn")
    plain = TrainConfig(method=method, batch_size=3, epochs=2, lr=rate, dtype="bfloat16", attention="sdpa")
    losses = dict[str, list[float]]()
    for config in (plain, plain.model_copy(update={"attention": "flash_attention_2"})):
        out, scratch = folders(tmp_path, config.attention)
        notes = train_on(opened, chosen_step, out, config, scratch=scratch, base=smollm2, data=data)
        assert (notes["attention"], notes["packed"]) == (config.attention, config.attention == "flash_attention_2")
        losses[config.attention] = [row["loss"] for row in read_jsonl(out / "training.jsonl")]
    assert losses["flash_attention_2"] == pytest.approx(losses["sdpa"], rel=2e-2)


@pytest.mark.gpu
def test_soft_labels_train_packed_under_flash_attention_as_padded_under_sdpa(smollm2: Path, tmp_path: Path):
    pytest.importorskip("flash_attn")
    numbers = ["123, 456, 789", "987, 654, 321", "135, 246, 357"]
    rows = [
        {"id": i, "prompt": "More numbers: " + "5, " * i, "answer": text, "system": None}
        for i, text in enumerate(numbers)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    plain = TrainConfig(method=Lora(rank=4, alpha=8), batch_size=3, epochs=1, lr=1e-3, dtype="bfloat16")
    teacher, scratch = folders(tmp_path, "teacher")
    train_on(opened, chosen_step, teacher, plain, scratch=scratch, base=smollm2, data=tmp_path)
    labels, scratch = folders(tmp_path, "labels")
    asked = SoftLabelsConfig(format=NumberFormat(count=3))
    write_soft_labels(labels, asked, scratch=scratch, base=smollm2, data=tmp_path, weights=teacher)
    losses = dict[str, list[float]]()
    for attention in ("sdpa", "flash_attention_2"):
        out, scratch = folders(tmp_path, attention)
        config = SoftTrainConfig.model_validate(plain.model_dump() | {"attention": attention, "lr": 1e-4})
        notes = train_soft(out, config, scratch=scratch, base=smollm2, data=tmp_path, labels=labels)
        assert notes["packed"] == (attention == "flash_attention_2")
        losses[attention] = [row["loss"] for row in read_jsonl(out / "training.jsonl")]
    assert losses["flash_attention_2"] == pytest.approx(losses["sdpa"], rel=0.1, abs=5e-3)
