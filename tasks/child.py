"""The child process that runs stage bodies: jobs come as JSON lines on stdin, events leave on their own pipe."""

import json
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TextIO, cast

from sublim.core.errors import UserError
from sublim.core.hardware import peak_gpu_memory
from sublim.core.progress import Listener, listening

NETWORK_ERRORS = ("ConnectionError", "TimeoutError", "TransportError", "APIConnectionError")


def each_input(inputs: Any, change: Callable[[Any], Any]) -> Any:
    """`inputs` with what `change` makes of each of them: one alone, or those in lists and mappings; null stays."""
    match inputs:
        case None:
            return None
        case Mapping():
            return {name: each_input(item, change) for name, item in cast(Mapping[str, Any], inputs).items()}
        case list() | tuple():
            return [each_input(item, change) for item in cast(list[Any], inputs)]
        case _:
            return change(inputs)


def run_body(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one stage body here and returns its notes, with `peak_gpu_bytes` where it used a GPU."""
    function = cast(Callable[..., dict[str, Any] | None], resolve_name(job["function"]))
    config = resolve_name(job["config_type"]).model_validate(job["config"])
    inputs = each_input(job["inputs"], Path)
    with peak_gpu_memory() as peak:
        notes = function(Path(job["out"]), config, scratch=Path(job["scratch"]), **inputs) or {}
    return peak | notes


class _EventHandler(logging.Handler):
    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send({"event": "log", "level": record.levelno, "message": record.getMessage()})


def _read_jobs(jobs: "queue.Queue[str]") -> None:
    """Queues jobs; when stdin closes the parent is gone, and so is this process with all it started."""
    for line in sys.stdin:
        jobs.put(line)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def is_network(error: object) -> bool:
    """Whether an error says that a connection failed; each library has its own class for that, named alike."""
    return any(kind.__name__ in NETWORK_ERRORS for kind in type(error).__mro__)


def error_event(error: BaseException) -> dict[str, Any]:
    """An error as it travels: its type by name, its message, where it was raised."""
    kind = type(error)
    return {
        "event": "error",
        "type": f"{kind.__module__}:{kind.__qualname__}",
        "user": isinstance(error, UserError),
        "message": str(error),
        "network": is_network(error),
        "errno": error.errno if isinstance(error, OSError) else None,
        "file": str(error.filename) if isinstance(error, OSError) and error.filename else None,
        "traceback": "".join(traceback.format_exception(error)),
    }


def throttled(listener: Listener) -> Listener:
    """`listener` without the steps that follow another within a tenth of a second, the last of a count excepted."""
    last = -math.inf

    def listen(label: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last > 0.1:
            last = now
            listener(label, done, total)

    return listen


def serve(events: TextIO) -> None:
    """Runs jobs until the parent goes away."""
    lock = threading.Lock()

    def send(event: dict[str, Any]) -> None:
        with lock:
            events.write(json.dumps(event) + "\n")
            events.flush()

    logging.getLogger("sublim").addHandler(_EventHandler(send))
    logging.getLogger("sublim").setLevel(logging.INFO)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    while True:
        job = json.loads(jobs.get())
        try:
            with listening(throttled(lambda *step: send({"event": "progress", "step": step}))):
                notes = run_body(job)
            send({"event": "done", "notes": notes})
        except BaseException as error:  # noqa: BLE001 - whatever it was, the parent raises it
            send(error_event(error))


if __name__ == "__main__":
    pipe = int(sys.argv[1])
    os.set_inheritable(pipe, False)  # what the body starts must not hold it open
    serve(os.fdopen(pipe, "w", encoding="utf-8"))
