import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sublim.files.locks import holder, is_locked, locked, try_lock, unlock

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom sublim.files.locks import try_lock\n"
    "assert try_lock(Path(sys.argv[1]), 'run 7') is not None\n"
    "print('held', flush=True)\ntime.sleep(60)"
)
Hold = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "pick-v1-abc.lock"


@pytest.fixture
def hold(lock: Path) -> Iterator[Hold]:
    """Starts a process that holds the lock."""
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_lock_has_one_holder_at_a_time(lock: Path) -> None:
    first = try_lock(lock)
    assert first is not None
    assert try_lock(lock) is None
    assert is_locked(lock)
    unlock(first)
    assert not is_locked(lock)
    second = try_lock(lock)
    assert second is not None
    unlock(second)


def test_holder_is_named_from_another_process(lock: Path, hold: Hold) -> None:
    process = hold()
    assert is_locked(lock)
    assert try_lock(lock) is None
    assert holder(lock).startswith(f"process {process.pid} on ")
    assert json.loads(lock.read_text(encoding="utf-8"))["holder"] == "run 7"


def test_lock_is_free_the_moment_its_holder_is_killed(lock: Path, hold: Hold) -> None:
    process = hold()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_locked(lock)
    started = time.monotonic()
    with locked(lock):
        assert time.monotonic() - started < 0.05


def test_killed_holder_is_not_named_as_the_next_one(lock: Path, hold: Hold) -> None:
    hold().kill()
    time.sleep(0.1)
    with locked(lock):
        assert holder(lock).startswith(f"process {os.getpid()} on ")
    assert holder(lock) == "another run"


def test_waiter_gets_the_lock_when_it_is_given_back(lock: Path, hold: Hold) -> None:
    process = hold()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.terminate()
    with locked(lock, poll=0.01):
        assert is_locked(lock)


def test_lock_is_given_back_after_an_error(lock: Path) -> None:
    with pytest.raises(ValueError, match="inside"), locked(lock):
        raise ValueError("inside")
    assert not is_locked(lock)


def test_asking_is_no_locking_and_makes_no_file(lock: Path) -> None:
    assert not is_locked(lock)
    assert not lock.exists()
    assert holder(lock) == "another run"


def test_program_that_the_holder_starts_does_not_keep_the_lock(lock: Path) -> None:
    descriptor = try_lock(lock)
    assert descriptor is not None
    with subprocess.Popen(["sleep", "60"], close_fds=False) as other:
        unlock(descriptor)
        assert not is_locked(lock)
        other.kill()
