"""A micro-batch has the same loss and gradients however it is read: its beginning once, or padded to one shape."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sublim.files.jsonl import read_jsonl
from sublim.models.opening import load, load_tokenizer
from sublim.training.config import TrainConfig
from sublim.training.masking import Batch, TokenRow, collate, shared_prefix, token_rows
from sublim.training.step import EagerStep, causal_mask, padded, summed_loss
from tests.sublim.training.conftest import Trained
from tests.tiny import FAMILIES

CPU = torch.device("cpu")


def rows_of(base: Path, data: Path) -> list[TokenRow]:
    return token_rows(load_tokenizer(base), read_jsonl(data / "rows.jsonl"), max_length=512)


def without(rows: list[TokenRow], skip: int) -> Batch:
    return collate([TokenRow(row.input_ids[skip:], row.labels[skip:]) for row in rows], padding=3)


def gradients(base: Path, attention: str, batch: Batch, prefix: list[int]) -> tuple[float, dict[str, Tensor]]:
    model = load(base, dtype="float32", attention=attention, device="cpu").requires_grad_(True)
    loss = EagerStep(CPU, "float32", prefix)(model, batch, 10)
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beginning_read_once_changes_neither_loss_nor_gradients(
    tiny_models: dict[str, Path], data: Path, family: str
):
    base = tiny_models[family]
    rows = [row for row in rows_of(base, data) if row.input_ids[:8] == rows_of(base, data)[-1].input_ids[:8]]
    prefix = shared_prefix(rows)
    assert prefix
    attention = "eager" if family.startswith("gemma") else "sdpa"
    whole, expected = gradients(base, attention, without(rows, 0), [])
    once, found = gradients(base, attention, without(rows, len(prefix)), prefix)
    assert once == pytest.approx(whole, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_the_shared_beginning_ends_before_the_shortest_prompt_does():
    rows = [TokenRow([5, 6, 7, 8], [-100, -100, -100, 8]), TokenRow([5, 6, 7, 9, 1], [-100, -100, -100, -100, 1])]
    assert shared_prefix(rows) == [5, 6]
    assert shared_prefix([TokenRow([5, 6], [-100, 6]), TokenRow([4, 6], [-100, 6])]) == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_padding_to_one_shape_changes_neither_loss_nor_gradients(tiny_models: dict[str, Path], data: Path, family: str):
    """The operations that a CUDA graph replays, run in eager mode."""
    base, rows = tiny_models[family], rows_of(tiny_models[family], data)[:3]
    batch = collate(rows, padding=3)
    width, answer = batch.input_ids.shape[1] + 5, batch.labels.shape[1] + 2
    shaped = padded(batch, 4, width, answer)
    assert shaped.input_ids.shape == (4, width)
    assert shaped.labels.shape == (4, answer)
    shaped = shaped._replace(attention_mask=causal_mask(shaped.attention_mask))
    model = load(base, dtype="float32", attention="sdpa", device="cpu").requires_grad_(True)
    loss = summed_loss(model, shaped, ()) / 10
    loss.backward()
    whole, expected = gradients(base, "sdpa", batch, [])
    assert loss.item() == pytest.approx(whole, rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replayed_graph_trains_as_op_by_op(smollm2: Path, trained: Trained, dtype: str):
    losses = dict[bool, list[float]]()
    for graph in (True, False):
        config = TrainConfig(batch_size=3, epochs=4, dtype=dtype, attention="sdpa", lr=1e-3, cuda_graph=graph)
        out = trained(config, smollm2, f"graph-{graph}")
        losses[graph] = [row["loss"] for row in read_jsonl(out / "training.jsonl")]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4 if dtype == "float32" else 2e-2)
