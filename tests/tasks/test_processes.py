import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.core.interpreter import python
from tasks.child import throttled
from tasks.processes import OutOfDeviceMemory, StageFailed, StageKilled, isolated, one_process, run_job
from tests.tasks import sample_stages
from tests.tasks.sample_stages import CountConfig, FailConfig, OwnError, RelativesConfig

log = logging.getLogger("test")
Run = Callable[..., dict[str, Any]]


def job(root: Path, function: str, config: Config, **inputs: str) -> dict[str, Any]:
    for name in ("out", "scratch"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return {
        "function": f"{sample_stages.__name__}:{function}",
        "config_type": f"{type(config).__module__}:{type(config).__qualname__}",
        "config": config.model_dump(mode="json"),
        "out": str(root / "out"),
        "scratch": str(root / "scratch"),
        "inputs": inputs,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a sample stage in a child."""

    def run(function: str, config: Config | None = None, listener: Any = lambda *_: None) -> dict[str, Any]:
        asked = job(tmp_path, function, config or Config())
        return run_job(asked, isolate=True, listener=listener, logger=log)

    return run


def wait_until_gone(pids: list[int], seconds: float = 8.0) -> None:
    def alive(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def wait_for(path: Path, process: "subprocess.Popen[Any]", seconds: float = 60.0) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text(encoding="utf-8")


def test_body_runs_in_another_process_that_is_gone_afterwards(run: Run) -> None:
    pid = run("who")["pid"]
    assert pid != os.getpid()
    wait_until_gone([pid])


def test_body_in_this_process_when_not_isolated(tmp_path: Path) -> None:
    asked = job(tmp_path, "who", Config())
    assert run_job(asked, isolate=False, listener=lambda *_: None, logger=log)["pid"] == os.getpid()


def test_stages_of_one_block_share_a_process(run: Run) -> None:
    with one_process():
        first = run("who")["pid"]
        with one_process():
            assert run("who")["pid"] == first
        assert run("who")["pid"] == first
    wait_until_gone([first])
    assert run("who")["pid"] != first


def test_stage_after_a_failure_gets_a_fresh_process(run: Run) -> None:
    with one_process():
        first = run("who")["pid"]
        with pytest.raises(UserError):
            run("fail", FailConfig(how="user"))
        second = run("who")["pid"]
        assert second != first
        os.kill(second, signal.SIGKILL)
        with pytest.raises(StageKilled, match="SIGKILL"):
            run("who")
        assert run("who")["pid"] not in (first, second)


def test_payload_log_lines_and_progress_come_back(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    steps: list[tuple[str, int, int]] = []
    assert run("count", CountConfig(upto=4), lambda *step: steps.append(step)) == {"resumed": 0}
    assert (tmp_path / "out" / "numbers.jsonl").read_text() == '{"n":0}\n{"n":1}\n{"n":2}\n{"n":3}\n'
    assert "counted to 4" in caplog.messages
    assert steps[0] == ("counting", 0, 4)
    assert steps[-1] == ("counting", 4, 4)


def test_progress_of_many_small_steps_is_thinned_but_ends_complete() -> None:
    steps: list[int] = []
    listen = throttled(lambda label, done, total: steps.append(done))
    for done in range(100_001):
        listen("fast", done, 100_000)
    assert steps[0] == 0
    assert steps[-1] == 100_000
    assert len(steps) < 100


@pytest.mark.parametrize(("how", "kind"), [("user", UserError), ("own", OwnError)])
def test_mistake_of_the_user_comes_back_as_its_own_type(run: Run, how: str, kind: type[UserError]) -> None:
    with pytest.raises(UserError) as caught:
        run("fail", FailConfig(how=how))
    assert type(caught.value) is kind
    assert str(caught.value) in ("lower the number", "raise the limit")


def test_bug_comes_back_with_its_type_and_place(run: Run) -> None:
    with pytest.raises(StageFailed, match=r"builtins\.ValueError: a bug of ours(.|\n)*in fail\n"):
        run("fail", FailConfig(how="bug"))


def test_notes_that_are_no_json_are_a_bug_and_no_death(run: Run) -> None:
    with pytest.raises(StageFailed, match="not JSON serializable"):
        run("fail", FailConfig(how="notes"))


def test_full_disk_comes_back_as_such(run: Run) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        run("fail", FailConfig(how="disk"))
    assert type(caught.value) is OSError


def test_out_of_gpu_memory_is_one_line_that_says_what_to_do(run: Run) -> None:
    with pytest.raises(OutOfDeviceMemory) as caught:
        run("fail", FailConfig(how="gpu memory"))
    assert "lower the batch size" in str(caught.value)
    assert "2.00 GiB" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("how", "reason"), [("killed", "signal SIGKILL"), ("exit", "exit code 3")])
def test_death_of_the_process_is_told_with_its_last_words(run: Run, how: str, reason: str) -> None:
    with pytest.raises(StageKilled, match=f"{reason}; its last words: last words"):
        run("fail", FailConfig(how=how))


def test_nothing_that_a_stage_started_outlives_it(run: Run, tmp_path: Path) -> None:
    run("relatives", RelativesConfig(journal=str(tmp_path / "pids")))
    wait_until_gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def test_death_is_noticed_at_once_although_a_fork_holds_the_pipes(run: Run, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(StageKilled):
        run("relatives", RelativesConfig(journal=str(tmp_path / "pids"), then="die"))
    assert time.monotonic() - started < 15
    wait_until_gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


PARENT = """
import sys
from pathlib import Path
from tasks.processes import run_job
from tests.tasks.sample_stages import RelativesConfig
from tests.tasks.test_processes import job, log
config = RelativesConfig(journal=sys.argv[1] + "/pids", then="wait")
run_job(job(Path(sys.argv[1]), "relatives", config), isolate=True, listener=lambda *_: None, logger=log)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose stage runs, with everything that it started."""
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stage_dies_with_the_run_that_started_it(
    parent: "subprocess.Popen[bytes]", tmp_path: Path, number: signal.Signals
) -> None:
    pids = [int(pid) for pid in wait_for(tmp_path / "pids", parent).split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    parent.send_signal(number)
    parent.wait(10)
    wait_until_gone(pids)


def test_a_users_own_modules_are_not_taken_for_ours_where_the_run_itself_looks_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('mine')\n")
    monkeypatch.chdir(tmp_path)
    command = [*python(), "-c", "import random; print(random.__file__)"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert str(tmp_path) not in done.stdout
    monkeypatch.syspath_prepend(str(tmp_path))
    assert python() == [sys.executable]


def test_isolation_is_for_gpus_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isolated(needs_gpu=False)
    monkeypatch.setenv("SUBLIM_ISOLATE", "1")
    assert isolated(needs_gpu=False)
    monkeypatch.setenv("SUBLIM_ISOLATE", "0")
    assert not isolated(needs_gpu=True)
