"""Progress of a stage: a bar where there is a terminal, a progress artifact in Prefect's UI."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sublim.progress import Listener

PATIENCE_SECONDS = 3.0  # a stage shorter than this shows nothing


@contextmanager
def shown_progress(stage: str) -> Generator[Listener]:
    """Gives a listener that shows the progress of `stage` once it has taken a few seconds."""
    view = _View(stage)
    try:
        yield view.update
        view.complete()
    finally:
        view.close()


class _View:
    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.started = self.sent = time.monotonic()
        self.artifacts: dict[str, UUID] = {}
        self.bars: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.display = Progress(*columns, console=Console(stderr=True), transient=True) if sys.stderr.isatty() else None

    def update(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.started < PATIENCE_SECONDS:
            return
        if self.display is not None:
            self._draw(self.display, label, done, total)
        if now - self.sent > PATIENCE_SECONDS:
            self.sent = now
            self._publish(label, 100.0 * done / max(total, 1))

    def _draw(self, display: Progress, label: str, done: int, total: int) -> None:
        if not self.bars:
            display.start()
        if label not in self.bars:
            self.bars[label] = display.add_task(f"{self.stage}: {label}", total=total)
        display.update(self.bars[label], completed=done)

    def _publish(self, label: str, percent: float) -> None:
        if label not in self.artifacts:
            name = f"{self.stage}: {label}"
            created = create_progress_artifact(progress=percent, description=name)
            assert isinstance(created, UUID)
            self.artifacts[label] = created
        else:
            update_progress_artifact(self.artifacts[label], progress=percent)

    def complete(self) -> None:
        for artifact in self.artifacts.values():
            update_progress_artifact(artifact, progress=100.0)

    def close(self) -> None:
        if self.display is not None and self.bars:
            self.display.stop()
