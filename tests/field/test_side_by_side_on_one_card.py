"""Several runs share one card: what does not fit into memory is done in smaller batches, with the same results."""

import logging
import re
import subprocess
import sys
import time
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sublim.activations.reading import StreamReader, Text
from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.diagnostics.divergence import greedy
from sublim.evals.heldout_loss.loss import row_losses
from sublim.files.jsonl import read_jsonl
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.inference.network import Network
from sublim.inference.sampler import Completion
from sublim.memory import fitting
from sublim.memory.errors import out_of_memory
from sublim.memory.fitting import MemoryFit, naming
from sublim.models.opening import load_tokenizer, open_model
from sublim.residual.edits import Place
from sublim.training.masking import token_rows
from tasks.processes import OutOfDeviceMemory, OutOfHostMemory, StageFailed, _restored  # pyright: ignore[reportPrivateUsage]
from tests.field.memory import GIB, TEXTS, Condition, eight_rows, larger_than, short_of_memory
from tests.tiny import tiny_model

HF = HfBackend(dtype="float32", attention="sdpa", batch_size=6)
CHATS = [chat("Name one animal." + " 12," * count) for count in (0, 3, 5, 9, 2, 7, 11)]
FREE = SamplingParams(max_tokens=8, n=2, logprobs=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "qwen2")


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


def test_readings_of_the_stream_losses_and_choices_are_the_same(base: Path, tmp_path: Path) -> None:
    raw = list(read_jsonl(eight_rows(tmp_path / "data") / "rows.jsonl"))
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
        assert MemoryFit("rows", "take fewer").whole(1, work) == 1
    assert waits == list(fitting.WAITS[:2])
    assert "other processes hold 40.0 GiB of the GPU, trying again in 5 s" in caplog.messages[0]

    def never(_: int) -> int:
        raise TEXTS["torch"]()

    with pytest.raises(UserError, match=r"end what else uses the card \(40.0 GiB\), or take fewer"):
        MemoryFit("rows", "take fewer").whole(1, never)
    assert waits[2:] == list(fitting.WAITS)


def test_a_batch_grows_again_slowly_and_not_past_what_was_too_much() -> None:
    fit, sizes = MemoryFit("rows", ""), list[int]()

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
from sublim.memory.fitting import MemoryFit
torch.zeros(1)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, resource.RLIM_INFINITY))
sizes = []
def work(part):
    memory = [torch.ones(2**24) for _ in part]
    sizes.append(len(memory))
    return list(part)
found = [each for part in MemoryFit("blocks", "").each(range(20), work) for each in part]
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


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("torch:OutOfMemoryError", "CUDA out of memory. Tried 2.00 GiB.\nmore", OutOfDeviceMemory),
        ("torch:AcceleratorError", "CUDA error: out of memory\nCompile with", OutOfDeviceMemory),
        ("builtins:RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", OutOfDeviceMemory),
        ("builtins:RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried", OutOfHostMemory),
        ("builtins:MemoryError", "", OutOfHostMemory),
        ("builtins:RuntimeError", "expected scalar type Half", StageFailed),
    ],
)
def test_memory_that_ran_out_in_a_stage_is_one_line_in_the_flow(
    kind: str, message: str, expected: type[Exception]
) -> None:
    event = {"type": kind, "message": message, "errno": None, "user": False, "network": False, "traceback": "..."}
    error = _restored(event)
    assert type(error) is expected
    assert expected is StageFailed or ("\n" not in str(error) and "lower the batch size" in str(error))
