"""Stages that do not need each other run at the same time, each lane in a process of its own."""

import time
from collections.abc import Callable
from functools import partial

import pytest

from sublim.core.errors import UserError
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from tasks import lanes
from tasks.lanes import side_by_side
from tasks.stage import Stage
from tests.tasks.sample_stages import CountConfig, FailConfig
from tests.tasks.test_stage import in_flow

SAMPLE = "tests.tasks.sample_stages"
count = Stage("count", f"{SAMPLE}:count")
fail = Stage("fail", f"{SAMPLE}:fail")
pytestmark = pytest.mark.usefixtures("prefect_server", "store_root")


def counts(*uptos: int, pause: float = 0.0) -> list[Callable[[], Artifact]]:
    return [partial(count, CountConfig(upto=upto, pause=pause), label=str(upto)) for upto in uptos]


def numbers_in(artifact: Artifact) -> int:
    return len((open_store().payload(artifact) / "numbers.jsonl").read_text().splitlines())


def test_what_they_give_comes_in_the_order_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_LANES", "2")
    found, runs, _ = in_flow(lambda: side_by_side(counts(9, 3, 7, 5, 1)))
    assert [numbers_in(each) for each in found] == [9, 3, 7, 5, 1]
    assert {run.label for run in runs} == {"9", "3", "7", "5", "1"}
    again, runs, _ = in_flow(lambda: side_by_side(counts(9, 3, 7, 5, 1)))
    assert again == found
    assert {run.state for run in runs} == {"Cached"}


def test_two_lanes_overlap_and_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: dict[str, float] = {}
    for lane_count in ("1", "2"):
        monkeypatch.setenv("SUBLIM_LANES", lane_count)
        monkeypatch.setenv("SUBLIM_ISOLATE", "1")
        started = time.monotonic()
        first = 8 + 2 * int(lane_count)
        in_flow(lambda: side_by_side(counts(first, first + 1, pause=0.4)))  # noqa: B023 - called at once
        seconds[lane_count] = time.monotonic() - started
    assert seconds["1"] > 8.0  # 21 numbers of .4 s each
    assert seconds["2"] < seconds["1"] - 2.0


def test_a_failure_is_raised_and_nothing_begins_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_LANES", "2")
    calls = [partial(fail, FailConfig()), *counts(4, pause=0.5), *counts(30, 31, 32)]
    with pytest.raises(UserError) as raised:
        in_flow(lambda: side_by_side(calls))
    labels = [run.label for run in raised.value.runs]  # type: ignore[attr-defined]
    assert not {"30", "31", "32"} & {*labels}


def test_lanes_are_the_visible_cards_or_shares_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBLIM_LANES", raising=False)
    monkeypatch.setattr(lanes, "gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert lanes.lanes() == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert lanes.lanes() == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    monkeypatch.setattr(lanes, "gpu_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(lanes.lanes()) == 1


@pytest.mark.parametrize("wrong", ["0", "two", "-1", "1.5"])
def test_a_number_of_lanes_that_is_none_is_refused_in_one_line(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_LANES", wrong)
    with pytest.raises(UserError, match="give the number of stages"):
        lanes.lanes()
