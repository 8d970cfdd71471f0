"""Records of runs in the store's `runs` folder: the flow, its preset and target, its stages and its report."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic import ValidationError

from sublim.core.config import Config
from sublim.core.digest import digest
from sublim.core.errors import UserError, file_faults_told
from sublim.files.whole_files import write_whole
from sublim.store.folder import Store
from sublim.store.opening import open_store
from tasks.stage import RunLog, StageRun, run_log

TARGET_BYTES = 64
"""Most bytes of the targets in a run's name, because some file systems limit a whole name to 143 bytes."""


class RunRecord(Config):
    """One run of a flow, whether it succeeded or not."""

    name: str
    flow: str
    preset: str
    target: str
    status: Literal["Completed", "Failed"]
    started: str
    seconds: float
    stages: list[StageRun]
    report: str | None
    """Path of the report, relative to the store; None when the run ended before it was written."""
    flow_run: str | None


class Run:
    """A run in progress: its folder, its stages so far and its start time."""

    def __init__(self, store: Store, flow: str, preset: str, target: str) -> None:
        self.store, self.flow, self.preset, self.target = store, flow, preset, target
        self.started, self.clock = datetime.now(UTC), time.monotonic()
        self.flow_run: str | None = flow_run.get_id()
        stem = f"{self.started:%Y%m%d-%H%M%S}-{flow}-{file_name(target.replace(',', '+') or 'all')}"
        self.name = f"{stem}-{(self.flow_run or '')[:6] or f'{time.time_ns() % 10**6:06d}'}"
        self.log = RunLog()
        self.stages = self.log.stages
        self.report: Path | None = None

    @property
    def folder(self) -> Path:
        return self.store.folder(self.store.root / "runs" / self.name)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.clock

    def stage_table(self) -> list[dict[str, Any]]:
        """The stages as `--json` prints them."""
        return [{**run.model_dump(), "seconds": round(run.seconds, 3)} for run in self.stages]

    def save(self, status: Literal["Completed", "Failed"]) -> None:
        record = RunRecord(
            name=self.name,
            flow=self.flow,
            preset=self.preset,
            target=self.target,
            status=status,
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(self.seconds, 3),
            stages=self.stages,
            report=str(self.report.relative_to(self.store.root)) if self.report else None,
            flow_run=self.flow_run,
        )
        write_whole(self.folder / "run.json", record.model_dump_json(indent=1))
        self.store.share(self.folder)


@contextmanager
def recorded(flow: str, preset: str, target: str) -> Generator[Run]:
    """Collects the stages called inside, and writes the run's record whether or not the run succeeds."""
    run = Run(open_store(), flow, preset, target)
    if run.flow_run:
        worker = os.environ.get("PREFECT__WORKER_NAME", "")
        tag(run.flow_run, [Path(preset).stem, *target.split(","), worker])
    run.store.ready()
    token = run_log.set(run.log)
    try:
        with file_faults_told(run.store.root):
            yield run
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk has no room for the record either
            run.save("Failed")
        raise
    finally:
        run_log.reset(token)
    with file_faults_told(run.store.root):
        run.save("Completed")


def tag(run_id: str, words: list[str]) -> None:
    """Adds tags to a flow run, by which the UI can search."""
    tags = sorted({*flow_run.get_tags(), *filter(None, words)})
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(run_id), tags=tags)


def list_runs(store: Store) -> list[RunRecord]:
    """Every readable run record, oldest first."""
    found: list[RunRecord] = []
    store.refresh("runs/*/run.json")
    for path in sorted((store.root / "runs").glob("*/run.json")):
        # Left out: those of another version, incomplete, or unreadable for this user.
        with contextlib.suppress(ValidationError, PermissionError):
            found.append(RunRecord.model_validate_json(path.read_bytes()))
    return found


def find_run(store: Store, name: str) -> RunRecord:
    """The run with this name, the only one whose name contains it, or for `last` the newest run.

    Raises UserError when no run or several runs fit.
    """
    runs = list_runs(store)
    if name == "last" and runs:
        return runs[-1]
    matches = [run for run in runs if run.name == name] or [run for run in runs if name in run.name]
    if len(matches) != 1:
        what = "matches no run" if not matches else f"matches {len(matches)} runs"
        raise UserError(f"{name!r} {what}: `sublim runs` lists them")
    return matches[0]


def file_name(text: str) -> str:
    """`text` as part of a file name that is valid on any file system and in any locale.

    When characters are replaced or cut off, a digest of `text` is added to keep names distinct.
    """
    name = re.sub(r'[\x00-\x1f\x7f/\\<>:"|?*]', "_", text)  # SMB and exFAT do not allow <>:"|?*
    if sys.getfilesystemencoding() != "utf-8":
        name = re.sub(r"[^\x00-\x7f]", "_", name)
    cut = name.encode(errors="replace")[: TARGET_BYTES - 9].decode(errors="ignore")
    return text if name == text and len(text.encode()) <= TARGET_BYTES else f"{cut}-{digest(text)[:8]}"
