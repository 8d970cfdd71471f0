"""Progress of a stage: a bar where there is a terminal, a progress artifact in Prefect's UI."""

import logging
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sublim.core.progress import Listener
from tasks.processes import in_lane

PATIENCE_SECONDS = 3.0  # a stage shorter than this shows nothing
SILENT = ""
log = logging.getLogger("sublim.progress")


@contextmanager
def shown_progress(stage: str) -> Generator[Listener]:
    """Gives a listener that shows the progress of `stage` once it has taken a few seconds."""
    bars, artifacts = _Bars(stage), _Artifacts(stage)
    started = time.monotonic()
    silent = threading.Timer(PATIENCE_SECONDS, bars.pulse)
    silent.daemon = True

    def listen(label: str, done: int, total: int) -> None:
        if time.monotonic() - started >= PATIENCE_SECONDS:
            bars.update(label, done, total)
            artifacts.update(label, 100.0 * done / max(total, 1))

    try:
        silent.start()
        yield listen
        artifacts.complete()
    finally:
        silent.cancel()
        artifacts.close()
        bars.close()


class _Bars:
    """Bars on stderr, when that is a terminal; one without an end while a stage has told nothing of its progress."""

    def __init__(self, stage: str) -> None:
        self.stage, self.lock, self.closed = stage, threading.Lock(), False
        self.tasks: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        lane = in_lane()
        shown = sys.stderr.isatty() and (lane is None or lane.number == 0)  # two bars would write over each other
        self.display = Progress(*columns, console=Console(stderr=True), transient=True) if shown else None

    def pulse(self) -> None:
        """Called where nothing was told for a while."""
        with self.lock:
            if self.display is not None and not self.tasks and not self.closed:
                self.tasks[SILENT] = self.display.add_task(self.stage, total=None)
                self.display.start()

    def update(self, label: str, done: int, total: int) -> None:
        with self.lock:
            if self.display is None or self.closed:
                return
            if label not in self.tasks:
                self.tasks[label] = self.display.add_task(f"{self.stage}: {label}", total=total)
            if SILENT in self.tasks:
                self.display.remove_task(self.tasks.pop(SILENT))
            self.display.start()
            self.display.update(self.tasks[label], completed=done)

    def close(self) -> None:
        with self.lock:
            self.closed = True
            if self.display is not None and self.tasks:
                self.display.stop()


class _Artifacts:
    """Progress artifacts, sent from a thread: a server that is slow or gone neither delays nor fails the stage."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.percent: dict[str, float] = {}
        self.sent: dict[str, float] = {}
        self.ids: dict[str, UUID] = {}
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def update(self, label: str, percent: float) -> None:
        self.percent[label] = percent
        if self.thread is None:
            context = copy_context()  # it says to which run the artifacts belong
            self.thread = threading.Thread(target=lambda: context.run(self._send_until_ended), daemon=True)
            self.thread.start()

    def _send_until_ended(self) -> None:
        while not self.ended.wait(PATIENCE_SECONDS):
            self._send()
        self._send()

    def _send(self) -> None:
        for label, percent in list(self.percent.items()):
            if self.sent.get(label) == percent:
                continue
            try:
                self._publish(label, percent)
            except (HTTPError, PrefectHTTPStatusError) as error:
                log.debug("progress not sent: %r", error)
                return
            self.sent[label] = percent

    def _publish(self, label: str, percent: float) -> None:
        if label not in self.ids:
            name = f"{self.stage}: {label}"
            created = create_progress_artifact(progress=percent, description=name)
            assert isinstance(created, UUID)
            self.ids[label] = created
        else:
            update_progress_artifact(self.ids[label], progress=percent)

    def complete(self) -> None:
        for label in self.percent:
            self.percent[label] = 100.0

    def close(self) -> None:
        self.ended.set()
        if self.thread is not None:
            self.thread.join(PATIENCE_SECONDS)
