"""Several runs share one card: what does not fit into memory is done in smaller batches, with the same results."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sublim import fitting, models
from sublim.chat import chat
from sublim.divergence import greedy
from sublim.errors import UserError
from sublim.fitting import Fit, naming
from sublim.heldout import row_losses
from sublim.inference import Completion, HfBackend, NumberFormat, SamplingParams, open_sampler
from sublim.inference.network import Network
from sublim.jsonl import read_jsonl, write_jsonl
from sublim.memory_errors import out_of_memory
from sublim.models import forget_base, load_tokenizer, open_model
from sublim.reading import StreamReader, Text
from sublim.steering_config import Place
from sublim.training import Lora, TrainConfig, checkpoint
from sublim.training.masking import TokenRow, cut, micro_batches, token_rows
from sublim.training.trl import train
from tests.tiny import tiny_model

HF = HfBackend(dtype="float32", attention="sdpa", batch_size=6)
CHATS = [chat("Name one animal." + " 12," * count) for count in (0, 3, 5, 9, 2, 7, 11)]
FREE = SamplingParams(max_tokens=8, n=2, logprobs=True)
GIB = 2**30
TEXTS: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "driver": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    "python": lambda: MemoryError("Unable to allocate 2.00 GiB for an array"),
}
Condition = Callable[[Tensor], bool]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "qwen2")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Eight rows of different lengths."""
    told = [
        {"id": i, "prompt": "Continue: " + "12, " * (i + 1), "answer": f"{i}, 45{i}, 007", "system": None}
        for i in range(8)
    ]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "rows.jsonl", told)
    return tmp_path / "data"


@contextmanager
def short_of_memory(fails: Condition, error: Callable[[], Exception] = TEXTS["torch"]) -> Generator[list[int]]:
    """Models loaded meanwhile run out of memory where `fails` says so of their token ids; gives the sizes."""
    failures: list[int] = []
    loaded = models._loaded  # pyright: ignore[reportPrivateUsage]

    def load(*args: Any, **options: Any) -> Any:
        model = loaded(*args, **options)

        def check(_: Any, given: tuple[Tensor, ...]) -> None:
            if fails(given[0]):
                failures.append(len(given[0]))
                raise error()

        model.get_input_embeddings().register_forward_pre_hook(check)
        return model

    forget_base()
    patched = pytest.MonkeyPatch()
    patched.setattr(models, "_loaded", load)
    try:
        yield failures
    finally:
        patched.undo()
        forget_base()


def larger_than(rows: int) -> Condition:
    return lambda ids: len(ids) > rows


def drawn(base: Path, constraint: NumberFormat | None, backend: HfBackend = HF) -> list[list[Completion]]:
    params = FREE if constraint is None else SamplingParams(max_tokens=60, n=2, logprobs=True)
    with open_sampler(backend, base) as sampler:
        return sampler.sample(CHATS, params, constraint=constraint, first=3)


def assert_same(found: list[list[Completion]], wanted: list[list[Completion]]) -> None:
    assert [[each.token_ids for each in own] for own in found] == [[each.token_ids for each in own] for own in wanted]
    for one, other in zip(chain.from_iterable(found), chain.from_iterable(wanted), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


FAILS: dict[str, Condition] = {
    "more than 4 rows": larger_than(4),
    "more than 1 row": larger_than(1),
    "prompts of more than 2 rows": lambda ids: ids.shape[1] > 3 and len(ids) > 2,
    "steps of more than 2 rows": lambda ids: ids.shape[1] <= 3 and len(ids) > 2,
}


@pytest.mark.parametrize("constraint", [None, NumberFormat(count=2)], ids=["free", "constrained"])
@pytest.mark.parametrize("fails", FAILS)
def test_answers_are_the_same_where_batches_had_to_be_halved(
    base: Path, fails: str, constraint: NumberFormat | None, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = drawn(base, constraint)
    with short_of_memory(FAILS[fails]) as failures, caplog.at_level(logging.WARNING, "sublim"):
        assert_same(drawn(base, constraint), wanted)
    assert failures
    assert len(caplog.messages) == len(failures)
    assert re.match(r"memory ran out with \d answers at a time: going on with \d; the result stays", caplog.messages[0])


@pytest.mark.parametrize("kind", TEXTS)
def test_every_way_in_which_libraries_say_it_is_understood(base: Path, kind: str) -> None:
    wanted = drawn(base, None)
    with short_of_memory(larger_than(3), TEXTS[kind]) as failures:
        assert_same(drawn(base, None), wanted)
    assert failures == [6]


def test_an_error_over_one_about_memory_counts_and_others_do_not() -> None:
    capture = RuntimeError("operation failed due to a previous error during capture")
    capture.__context__ = TEXTS["torch"]()
    assert out_of_memory(capture)
    assert not out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not out_of_memory(UserError("lower max_tokens"))


def test_another_error_rises_as_it_is_and_nothing_is_halved(base: Path) -> None:
    with short_of_memory(larger_than(3), lambda: RuntimeError("device-side assert triggered")) as failures:
        with pytest.raises(RuntimeError, match="device-side assert"):
            drawn(base, None)
        assert failures == [6]


def test_the_sampler_goes_on_in_small_batches_in_its_next_call(base: Path) -> None:
    with short_of_memory(larger_than(3)) as failures, open_sampler(HF, base) as sampler:
        first, second = sampler.sample(CHATS, FREE), sampler.sample(CHATS, FREE)
        assert failures == [6]
    assert_same(first, second)


def test_log_probs_of_given_answers_are_the_same(base: Path) -> None:
    words = [["Owl", "The wolf", "The owl"]] * len(CHATS)

    def scored() -> list[list[list[float]]]:
        with open_sampler(HF, base) as sampler:
            return sampler.logprobs(CHATS, words)

    wanted = scored()
    with short_of_memory(larger_than(2)) as failures:
        found = scored()
    assert failures
    for one, other in zip(found, wanted, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)


def test_one_that_does_not_fit_ends_in_one_line_that_says_what_to_change(base: Path) -> None:
    with short_of_memory(larger_than(0)) as failures:
        with pytest.raises(UserError, match="memory ran out with 1 of the answers at a time: take dtype") as caught:
            drawn(base, None)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="with 1 of the questions at a time"), open_sampler(HF, base) as sampler:
            sampler.logprobs(CHATS[:1], [["Owl"]])
    assert failures


def test_readings_of_the_stream_losses_and_choices_are_the_same(base: Path, rows: Path) -> None:
    raw = list(read_jsonl(rows / "rows.jsonl"))
    tokens = token_rows(load_tokenizer(base), raw, max_length=500)

    def read() -> tuple[Tensor, list[float], list[list[int]]]:
        with open_model(base, dtype="float32", attention="sdpa") as loaded:
            reader = StreamReader(Network(loaded.model, "sdpa"), [Place("resid_post", 1)], 10**6)
            texts = [[Text(row.input_ids, [[len(row.input_ids) - 1]])] for row in tokens]
            entries = dict(reader.read(texts))
            values = torch.cat([entries[index][0].values for index in range(len(texts))])
            losses = row_losses(loaded.model, tokens, size=8, padding=0)
            return values, losses, greedy(loaded, tokens, 8)

    wanted = read()
    with short_of_memory(larger_than(3)) as failures:
        found = read()
    assert failures == [8, 4, 8, 4, 8, 4]
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)
    assert found[2] == wanted[2]


TRAIN = TrainConfig(
    method=Lora(rank=4, alpha=8), batch_size=8, updates=4, lr=1e-2, dtype="float32", attention="sdpa", max_length=500
)


def trained(folder: Path, config: TrainConfig, base: Path, rows: Path) -> tuple[dict[str, Tensor], list[float], Any]:
    """The adapter, the losses and the notes."""
    from safetensors.torch import load_file

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


def test_memory_that_others_hold_is_waited_for_and_then_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fitting, "held_by_others", lambda: 40 * GIB)
    monkeypatch.setattr(time, "sleep", waits.append)
    tries = [TEXTS["torch"](), TEXTS["cublas"](), None]

    def work(size: int) -> int:
        if (error := tries.pop(0)) is not None:
            raise error
        return size

    with caplog.at_level(logging.WARNING, "sublim"):
        assert Fit("rows", "take fewer").whole(1, work) == 1
    assert waits == list(fitting.WAITS[:2])
    assert "other processes hold 40.0 GiB of the GPU, trying again in 5 s" in caplog.messages[0]

    def never(_: int) -> int:
        raise TEXTS["torch"]()

    with pytest.raises(UserError, match=r"end what else uses the card \(40.0 GiB\), or take fewer"):
        Fit("rows", "take fewer").whole(1, never)
    assert waits[2:] == list(fitting.WAITS)


def test_a_batch_grows_again_slowly_and_not_past_what_was_too_much() -> None:
    fit, sizes = Fit("rows", ""), list[int]()

    def work(size: int) -> None:
        sizes.append(size)
        if size > 8:
            raise TEXTS["torch"]()

    for _ in range(40 * fitting.GROWTH):
        fit.whole(16, work)
    tries = [place for place, size in enumerate(sizes) if size == 16]
    assert 2 < len(tries) < 8
    assert all(later - earlier > fitting.GROWTH for earlier, later in pairwise(tries))


def test_what_changes_the_result_is_named_and_not_touched() -> None:
    with (
        pytest.raises(UserError, match="memory ran out in the step: lower batch"),
        naming("in the step", "lower batch"),
    ):
        raise TEXTS["cublas"]()
    with pytest.raises(ZeroDivisionError), naming("in the step", "lower batch"):
        raise ZeroDivisionError


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from sublim.fitting import Fit
torch.zeros(1)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, resource.RLIM_INFINITY))
sizes = []
def work(part):
    memory = [torch.ones(2**24) for _ in part]
    sizes.append(len(memory))
    return list(part)
found = [each for part in Fit("blocks", "").each(range(20), work) for each in part]
print(found == list(range(20)), max(sizes), len(sizes))
"""


def test_a_real_limit_of_memory_is_met_with_smaller_batches() -> None:
    """20 blocks of 64 MiB where the system gives 400 MiB."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    right, most, calls = done.stdout.split()
    assert right == "True"
    assert 1 < int(most) <= 6
    assert int(calls) >= 20 // int(most)
    assert "memory ran out with 20 blocks at a time: going on with 10" in done.stderr


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
