"""Training beside other runs on one card: the same updates in smaller micro-batches; and both on a small GPU."""

import logging
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.memory import fitting
from sublim.training.checkpoints import checkpoint
from sublim.training.config import Lora, TrainConfig
from sublim.training.masking import TokenRow, cut, micro_batches
from sublim.training.train import train
from tests.field.memory import GIB, Condition, eight_rows, larger_than, short_of_memory
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "qwen2")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return eight_rows(tmp_path / "data")


TRAIN = TrainConfig(
    method=Lora(rank=4, alpha=8), batch_size=8, updates=4, lr=1e-2, dtype="float32", attention="sdpa", max_length=500
)


def trained(folder: Path, config: TrainConfig, base: Path, rows: Path) -> tuple[dict[str, Tensor], list[float], Any]:
    """The adapter, the losses and the notes."""
    out, scratch = folder / "out", folder / "scratch"
    for each in (out, scratch):
        each.mkdir(parents=True)
    notes = train(out, config, scratch=scratch, base=base, data=rows)
    losses = [row["loss"] for row in read_jsonl(out / "training.jsonl")]
    return load_file(checkpoint(out) / "adapter_model.safetensors"), losses, notes


def once(after: int) -> Condition:
    """One failure, at the pass after so many."""
    seen: list[int] = []

    def fails(ids: Tensor) -> bool:
        seen.append(len(ids))
        return len(seen) == after + 1

    return fails


@pytest.mark.parametrize(
    ("micro_batch", "make", "number"),
    [(None, larger_than, 4), (8, larger_than, 1), (8, once, 0), (None, once, 3), (3, once, 1)],
)
def test_training_makes_the_same_updates_in_smaller_micro_batches(
    tmp_path: Path, base: Path, rows: Path, micro_batch: int | None, make: Callable[[int], Condition], number: int
) -> None:
    config = TRAIN.model_copy(update={"micro_batch": micro_batch})
    wanted, losses, _ = trained(tmp_path / "wanted", config, base, rows)
    with short_of_memory(make(number)) as failures:
        found, own_losses, notes = trained(tmp_path / "found", config, base, rows)
    assert own_losses == pytest.approx(losses, rel=1e-4)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-2, atol=2e-4)
    assert notes["micro_batch"] < (micro_batch or 8)
    assert failures


@pytest.mark.parametrize("at", [0, 1, 10])
def test_an_update_that_failed_half_way_is_made_whole_from_its_start(
    tmp_path: Path, base: Path, rows: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout every bit depends on the random numbers, and with half a gradient left over so would the update."""
    config = TRAIN.model_copy(update={"micro_batch": 1, "method": Lora(rank=4, alpha=8, dropout=0.3)})
    wanted, losses, _ = trained(tmp_path / "wanted", config, base, rows)
    monkeypatch.setattr(fitting, "held_by_others", lambda: 40 * GIB)
    monkeypatch.setattr(fitting, "WAITS", (0.0, 0.0))
    with short_of_memory(once(at)) as failures:
        found, own_losses, _ = trained(tmp_path / "found", config, base, rows)
    assert failures == [1]
    assert own_losses == losses
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_training_that_cannot_be_made_smaller_names_its_fields(tmp_path: Path, base: Path, rows: Path) -> None:
    with short_of_memory(larger_than(0)), pytest.raises(UserError, match="micro_batch is 1 already") as caught:
        trained(tmp_path, TRAIN, base, rows)
    assert "batch_size" not in str(caught.value)  # it would change the result
    assert "\n" not in str(caught.value)


def test_cut_batches_hold_the_same_rows() -> None:
    rows = [TokenRow([1, 2, n], [-100, -100, n]) for n in range(7)]
    whole = micro_batches(rows, 7, padding=0)
    assert [len(part.labels) for part in cut(whole, 3)] == [3, 3, 1]
    assert torch.equal(torch.cat([part.labels for part in cut(whole, 3)]), whole[0].labels)
    assert next(iter(cut(whole, 7))) is whole[0]


@pytest.fixture
def small_card() -> Generator[Callable[[float], None]]:
    """Sets how many GiB of the card this process may still take; torch then refuses more by itself."""

    def limit(gib: float) -> None:
        fitting.release()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + gib * GIB) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_on_a_small_card_answers_are_the_same(
    smollm2: Path, small_card: Callable[[float], None], caplog: pytest.LogCaptureFixture, graphs: bool
) -> None:
    chats = [chat("Continue: " + "12, " * (count % 40)) for count in range(1024)]
    backend = HfBackend(dtype="float32", attention="sdpa", batch_size=1024, cuda_graphs=graphs)
    params, form = SamplingParams(max_tokens=60), NumberFormat()
    with open_sampler(backend, smollm2) as sampler:
        wanted = [own[0].token_ids for own in sampler.sample(chats, params, constraint=form)]
    with caplog.at_level(logging.WARNING, "sublim"), open_sampler(backend, smollm2) as sampler:
        small_card(4.0)
        found = [own[0].token_ids for own in sampler.sample(chats, params, constraint=form)]
    assert any("going on with" in line for line in caplog.messages)
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 1020  # rounding may move a draw


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [True, False])
def test_on_a_small_card_training_makes_the_same_updates(
    smollm2: Path, rows: Path, tmp_path: Path, small_card: Callable[[float], None], graph: bool
) -> None:
    many = [row | {"id": 8 * n + row["id"]} for n in range(16) for row in read_jsonl(rows / "rows.jsonl")]
    write_jsonl(rows / "rows.jsonl", many)
    changes = {"batch_size": 128, "micro_batch": 128, "cuda_graph": graph, "lr": 1e-3, "updates": 8}
    config = TRAIN.model_copy(update=changes)
    _, losses, _ = trained(tmp_path / "wanted", config, smollm2, rows)
    small_card(3.0)
    _, found, notes = trained(tmp_path / "found", config, smollm2, rows)
    assert notes["micro_batch"] < 128
    assert found == pytest.approx(losses, rel=1e-3)
