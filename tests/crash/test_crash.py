import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sublim.store.folder import Store
from sublim.store.opening import open_store as open_at
from tests.crash.watcher import Watcher
from tests.tasks.sample_stages import ShardsConfig, shards
from tests.tasks.test_processes import wait_for, wait_until_gone

pytestmark = pytest.mark.usefixtures("prefect_server")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(store_root: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts `python -m tests.crash.chain` with its output in `<name>.out` and `<name>.log`."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, name: str = "run") -> "subprocess.Popen[str]":
        environment = os.environ | {"SUBLIM_STORE": str(store_root), "JOURNAL": str(tmp_path / "journal")}
        with (tmp_path / f"{name}.out").open("w") as out, (tmp_path / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", "tests.crash.chain", *arguments]
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=log, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def answer(tmp_path: Path, name: str = "run") -> dict[str, Any]:
    return json.loads((tmp_path / f"{name}.out").read_text().splitlines()[-1])


def until(ask: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(log: Path, *texts: str) -> bool:
    """Whether one line of the log holds all `texts`."""
    return any(all(text in line for text in texts) for line in log.read_text(encoding="utf-8").splitlines())


def visible(store: Store) -> list[str]:
    return sorted(manifest.artifact.stage for manifest in store.manifests())


def uninterrupted(folder: Path) -> dict[str, bytes]:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    shards(folder / "out", ShardsConfig(), scratch=folder / "scratch")
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def test_run_killed_at_every_point_in_turn_ends_as_if_never_killed(
    start: Start, store_root: Path, tmp_path: Path
) -> None:
    """One command, killed at a later point each time: every run finds what the killed ones finished, and goes on."""
    log = tmp_path / "run.log"
    scratch_parts = {"mid-checkpoint": 2}
    with Watcher(store_root) as watcher:
        for point in ("mid-checkpoint", "drafting", "drafted", "before-rename", "after-rename", "before-record"):
            process = start("kill", point)
            assert process.wait(90) == -signal.SIGKILL, log.read_text()
            store = open_at(str(store_root))
            committed = point in ("after-rename", "before-record")
            assert visible(store) == (["count", "shards"] if committed else ["count"]), point
            records = {path.name.partition("-")[0] for path in (store_root / "records").iterdir()}
            assert records == {"count"}, point
            if not committed:
                parts = list((store_root / "scratch" / "shards").glob("*/*.bin"))
                assert len(parts) == scratch_parts.get(point, 6), point
            text = log.read_text()
            assert ("Cached" in text) == (point != "mid-checkpoint"), text
            assert ("resumes from its scratch" in text) == (point not in ("mid-checkpoint", "before-record")), text
        adopted = start("kill", "nowhere")
        assert adopted.wait(90) == 0
        assert answer(tmp_path)["stages"] == [["count", "Cached"], ["shards", "Completed"]]
        assert "its record is restored" in log.read_text()
    assert start("kill", "nowhere").wait(90) == 0
    assert answer(tmp_path)["stages"] == [["count", "Cached"], ["shards", "Cached"]]

    assert watcher.problems == []
    assert len(watcher.seen) == 2
    assert watcher.looks > 1000
    (manifest,) = [m for m in open_at(str(store_root)).manifests() if m.artifact.stage == "shards"]
    assert manifest.notes == {"resumed": 6}
    payload = open_at(str(store_root)).payload(manifest.artifact)
    assert {path.name: path.read_bytes() for path in payload.iterdir()} == uninterrupted(tmp_path / "plain")
    assert not list((store_root / "scratch").glob("*/*"))


def test_two_runs_build_each_stage_once_and_the_death_of_one_frees_the_other(
    start: Start, store_root: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    with Watcher(store_root) as watcher:
        processes = {name: start("together", name, name=name) for name in ("a", "b")}
        while not journal.exists() or journal.read_text().count("\n") < 3:
            assert [process.poll() for process in processes.values()] == [None, None], (tmp_path / "a.log").read_text()
            time.sleep(0.01)
        builder = int(journal.read_text().splitlines()[2].split()[1])
        killed, waiter = ("a", "b") if processes["a"].pid == builder else ("b", "a")
        (third,) = (store_root / "scratch" / "shards").iterdir()
        waits = f"waiting: process {builder} on "
        until(lambda: told(tmp_path / f"{waiter}.log", waits, third.name) and len(list(third.glob("*.bin"))) >= 2)

        os.kill(builder, signal.SIGKILL)
        until(lambda: journal.read_text().count("\n") == 4, seconds=5)
        assert processes[waiter].wait(60) == 0, (tmp_path / f"{waiter}.log").read_text()

    assert watcher.problems == []
    bodies = [line.split() for line in journal.read_text().splitlines()]
    assert [stage for stage, _ in bodies] == ["shards"] * 4  # each once, and the last once more after the kill
    assert bodies[3][1] == str(processes[waiter].pid)
    assert processes[killed].wait() == -signal.SIGKILL
    assert answer(tmp_path, waiter)["stages"][-1] == ["shards", "Completed"]
    notes = {
        len(m.files): m.notes["resumed"] for m in open_at(str(store_root)).manifests() if m.artifact.stage == "shards"
    }
    assert notes[4] == notes[5] == 0
    assert notes[8] >= 2
    waited = [(tmp_path / f"{name}.log").read_text().count("waiting: process ") for name in ("a", "b")]
    assert sum(waited) >= 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_takes_the_process_of_its_stage_along(
    start: Start, store_root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start("linger")
    pids = [int(pid) for pid in wait_for(tmp_path / "journal", process).split()]
    process.send_signal(number)
    process.wait(20)
    wait_until_gone(pids)
    assert not (store_root / "relatives").exists()
