"""One process per stage on a GPU: memory is really freed, and a kill or a patched library stays in the child."""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublim.core.errors import FAULTS, FULL, UserError
from sublim.core.hardware import gpu
from sublim.core.interpreter import python
from sublim.core.progress import Listener, listening
from sublim.memory.errors import first_line, names_memory, out_of_memory
from tasks.child import run_body

GRACE_SECONDS = 4.0
VMSTAT = Path("/proc/vmstat")

Logger = logging.Logger | logging.LoggerAdapter[Any]
Environment = Mapping[str, str]
log = logging.getLogger("sublim.process")


class StageFailed(Exception):
    """A stage body raised in its own process; the message carries the error's type and place."""


class StageKilled(Exception):
    """The process of a stage died under it: killed, or lost with its machine."""


class OutOfDeviceMemory(UserError):
    """The GPU's memory did not suffice."""


class OutOfHostMemory(UserError):
    """The machine's memory did not suffice: an allocation failed, or the kernel killed the stage's process."""


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory; 0 where it does not say."""
    found = (
        re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(encoding="utf-8"), re.MULTILINE) if VMSTAT.exists() else None
    )
    return int(found[1]) if found else 0


class StageProcess:
    """A child process that runs stage bodies one after another."""

    _last_line = ""

    def __init__(self, environment: Environment) -> None:
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [*python(), "-u", "-m", "tasks.child", str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            start_new_session=True,
            env={**os.environ, **environment},
            encoding="utf-8",
            errors="replace",  # a line that is not UTF-8 must not end the draining
        )
        os.close(write)
        self._events = os.fdopen(read, encoding="utf-8")
        # Drained on a thread: a grandchild may keep stdout open long after the child is gone.
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()
        threading.Thread(target=self._bury, daemon=True).start()

    def _bury(self) -> None:
        # What the child forked holds the event pipe open, so that its death would go unnoticed.
        self._process.wait()
        self._signal(signal.SIGKILL)

    def _signal(self, signal_number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # nothing of the group is left
            os.killpg(self._process.pid, signal_number)

    def _drain(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            log.debug("%s", line.rstrip())
            self._last_line = line.rstrip()

    def run(self, job: dict[str, Any], listener: Listener, logger: Logger) -> dict[str, Any]:
        """Runs one body and returns its notes; re-raises what it raised."""
        assert self._process.stdin is not None
        kills = oom_kills()
        with contextlib.suppress(BrokenPipeError):  # it is dead: its events end, and that is told below
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        for line in self._events:
            if not line.endswith("\n"):  # killed while it wrote
                break
            event = json.loads(line)
            match event["event"]:
                case "progress":
                    listener(*event["step"])
                case "log":
                    logger.log(event["level"], "%s", event["message"])
                case "error":
                    raise _restored(event)
                case _:
                    return event["notes"]
        code = self._process.wait()
        if code == -signal.SIGKILL and oom_kills() > kills:
            raise OutOfHostMemory(
                "the machine's memory did not suffice and the system ended the stage's process: lower the batch size, "
                "or run less beside it"
            )
        self._drainer.join(1.0)
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise StageKilled(f"the stage's process ended with {reason}; its last words: {self._last_line or 'none'}")

    def close(self) -> None:
        """Ends the child and everything it started."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("the stage's process did not end within %g s: killing it", GRACE_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._events.close()


def short_of_memory(name: str, said: str) -> UserError:
    """One line for memory that ran out where nothing could be halved; `name` is the error's type."""
    fields = "lower the batch size (micro_batch of a training, batch_size of a backend)"
    if name.endswith(":MemoryError") or "CPUAllocator" in said or "bad_alloc" in said:
        return OutOfHostMemory(f"the machine's memory did not suffice; {fields} or run less beside it. {said}")
    return OutOfDeviceMemory(f"the GPU's memory did not suffice; {fields} or end what else uses the card. {said}")


def _restored(event: dict[str, Any]) -> Exception:
    name = str(event["type"])
    message, first = str(event["message"]), str(event["message"]).partition("\n")[0]
    if not event["user"] and names_memory(name, message):
        return short_of_memory(name, first)
    if event["errno"] in (*FULL, *FAULTS):
        return OSError(event["errno"], message, event["file"])
    if event["user"]:
        module, _, kind = name.partition(":")  # its own type where that is imported here; its module may be heavy
        return getattr(sys.modules.get(module), kind, UserError)(message)
    if event["network"]:
        return ConnectionError(f"{name.replace(':', '.')}: {message}")
    return StageFailed(f"{name.replace(':', '.')}: {message}\n{event['traceback']}")


@dataclass
class Lane:
    """Where stages share one process."""

    number: int | None
    """Its place among the lanes that run stages at the same time; None where stages run one after another."""
    environment: Environment
    process: StageProcess | None = None
    """Started by the first stage that needs it."""


_lane: ContextVar[Lane | None] = ContextVar("lane", default=None)


def lane_number() -> int | None:
    """The number of the lane that the caller is in; None where stages run one after another."""
    current = _lane.get()
    return current and current.number


@contextmanager
def lane(number: int | None, environment: Environment) -> Generator[Lane]:
    """Stages called inside run in one process, which has `environment` beside this one's."""
    current = Lane(number, environment)
    token = _lane.set(current)
    try:
        yield current
    finally:
        _lane.reset(token)
        if current.process is not None:
            current.process.close()


def one_process() -> AbstractContextManager[Lane]:
    """Stages called inside share one child, so that a model they have in common is loaded once."""
    current = _lane.get()
    return lane(None, {}) if current is None else nullcontext(current)


def isolated(needs_gpu: bool) -> bool:
    """Whether a stage body runs in a child: on a GPU and beside others, elsewhere only with SUBLIM_ISOLATE=1."""
    wish = os.environ.get("SUBLIM_ISOLATE", "auto")
    return wish == "1" or lane_number() is not None or (wish == "auto" and needs_gpu and gpu() is not None)


def run_job(
    job: dict[str, Any],
    *,
    isolate: bool,
    listener: Listener,
    logger: Logger,
) -> dict[str, Any]:
    """Runs a stage body in a child or in this process, and returns its notes."""
    if not isolate:
        with listening(listener):
            try:
                return run_body(job)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise short_of_memory(f":{type(error).__name__}", first_line(error)) from error
    with one_process() as shared:
        process = shared.process = shared.process or StageProcess(shared.environment)
        try:
            return process.run(job, listener, logger)
        except BaseException:  # the next stage starts in a fresh process
            shared.process = None
            process.close()
            raise
