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
from tasks.processes import lane_number

PATIENCE_SECONDS = 3.0  # a stage shorter than this shows nothing
SILENT = ""
log = logging.getLogger("sublim.progress")


@contextmanager
def shown_progress(stage: str) -> Generator[Listener]:
    """Gives a listener that shows the progress of `stage` once it has taken a few seconds."""
    bars, artifacts = _Bars(stage), _Artifacts(stage)
    started, ended = time.monotonic(), threading.Event()

    def listen(label: str, done: int, total: int) -> None:
        if time.monotonic() - started >= PATIENCE_SECONDS:
            bars.update(label, done, total)
            artifacts.percent[label] = 100.0 * done / max(total, 1)

    def watch() -> None:
        if not ended.wait(PATIENCE_SECONDS):
            bars.pulse()
        while not ended.wait(PATIENCE_SECONDS):
            artifacts.send()
        artifacts.send()

    context = copy_context()  # it says to which run the artifacts belong
    watcher = threading.Thread(target=context.run, args=(watch,), daemon=True)
    watcher.start()
    try:
        yield listen
        artifacts.percent = dict.fromkeys(artifacts.percent, 100.0)
    finally:
        ended.set()
        watcher.join(PATIENCE_SECONDS)
        bars.close()


class _Bars:
    """Bars on stderr, when that is a terminal; one without an end while a stage has told nothing of its progress."""

    def __init__(self, stage: str) -> None:
        self.stage, self.lock = stage, threading.Lock()
        self.tasks: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = sys.stderr.isatty() and not lane_number()  # a second lane's bar would write over the first one's
        self.display = Progress(*columns, console=Console(stderr=True), transient=True) if shown else None

    def pulse(self) -> None:
        """Called where nothing was told for a while."""
        with self.lock:
            if self.display is not None and not self.tasks:
                self.tasks[SILENT] = self.display.add_task(self.stage, total=None)
                self.display.start()

    def update(self, label: str, done: int, total: int) -> None:
        with self.lock:
            if self.display is None:
                return
            if label not in self.tasks:
                self.tasks[label] = self.display.add_task(f"{self.stage}: {label}", total=total)
            if SILENT in self.tasks:
                self.display.remove_task(self.tasks.pop(SILENT))
            self.display.start()
            self.display.update(self.tasks[label], completed=done)

    def close(self) -> None:
        with self.lock:
            if self.display is not None and self.tasks:
                self.display.stop()
            self.display = None


class _Artifacts:
    """Progress artifacts, for a thread to send: a server that is slow or gone neither delays nor fails the stage."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.percent: dict[str, float] = {}
        self.sent: dict[str, float] = {}
        self.ids: dict[str, UUID] = {}

    def send(self) -> None:
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
            created = create_progress_artifact(progress=percent, description=f"{self.stage}: {label}")
            assert isinstance(created, UUID)
            self.ids[label] = created
        else:
            update_progress_artifact(self.ids[label], progress=percent)
