"""One call of a stage as a Prefect task: locked, computed at most once, and committed whole."""

import logging
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from platform import python_version
from socket import gethostname
from typing import TYPE_CHECKING, Any, cast

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.tasks import MaterializingTask, Task

from sublim.core.config import Config
from sublim.core.digest import canonical
from sublim.core.errors import StoreRefused, StoreUnreachable, file_faults_told
from sublim.core.kill_points import kill_point
from sublim.core.provenance import code_version, device, package_versions
from sublim.store.folder import Store
from sublim.store.manifest import Artifact, Provenance
from tasks.child import each_input, is_network
from tasks.locks import FileLockManager
from tasks.processes import StageKilled, isolated, run_job
from tasks.progress_view import shown_progress
from tasks.records import VerifiedArtifact, restore_record, verifies_deeply

if TYPE_CHECKING:
    from tasks.stage import Stage

RETRY_SECONDS = 5.0  # before a stage whose process died, or whose network did, is tried once more

Inputs = Artifact | Sequence[Artifact] | Mapping[str, Artifact] | None


@dataclass
class Job:
    """One call of a stage: its key, and what is needed to run the body."""

    stage: "Stage[...]"
    config: Config
    inputs: Mapping[str, Inputs]
    store: Store
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.stage.key(self.config, self.inputs)

    def task(self, label: str) -> Task[[], Artifact]:
        """The Prefect task of this call; its record, lock and asset are named after the key."""
        return MaterializingTask(
            fn=self.run,
            assets=[asset_key(self.stage.name, self.key)],
            asset_deps=[asset_key(item.stage, item.key) for item in flatten(self.inputs)],
            materialized_by="sublim",
            name=self.stage.name,
            # Prefect fills in what stands in braces.
            task_run_name=f"{self.stage.name} {label}".strip().replace("{", "{{").replace("}", "}}"),
            version=str(self.stage.version),
            persist_result=True,
            result_storage=self.store.root / "records",
            result_serializer=VerifiedArtifact(),
            cache_policy=CacheKeyFnPolicy(
                cache_key_fn=lambda *_: self.record,
                isolation_level="SERIALIZABLE",
                lock_manager=FileLockManager(self.store.root / "locks", claimed=self.claimed),
            ),
            retries=1,
            retry_delay_seconds=RETRY_SECONDS,
            retry_condition_fn=is_transient,
        )

    @property
    def record(self) -> str:
        return self.store.record_name(self.stage.name, self.stage.version, self.key)

    @contextmanager
    def claimed(self) -> Generator[None]:
        """The right to build this key among all machines; what one of them made is a hit here as well."""
        name, version, deep = self.stage.name, self.stage.version, verifies_deeply()
        with self.store.claimed(name, self.key, version, deep=deep, tell=get_run_logger().info) as found:
            if found is not None:
                restore_record(self.store.root / "records", self.record, found)
            yield

    def run(self) -> Artifact:
        """The artifact under this key: one that a killed run committed, or one made now."""
        log = get_run_logger()
        with file_faults_told(self.store.root):
            # No record, or one that says nothing: another user's is not ours to write over, but it can make way.
            (self.store.root / "records" / self.record).unlink(missing_ok=True)
            found = self.store.find(self.stage.name, self.key, deep=verifies_deeply())
            if found is not None:
                log.info("%s %s was finished by an earlier run; its record is restored", found.stage, self.key[:12])
                self.store.clear_scratch(self.stage.name, self.key)
            else:
                found = self._make(log)
        kill_point("before-record")
        return found

    def _make(self, log: "logging.Logger | logging.LoggerAdapter[Any]") -> Artifact:
        scratch = self.store.scratch(self.stage.name, self.key)
        if any(scratch.iterdir()):
            log.info("%s resumes from its scratch folder", self.stage.name)
        with (
            self.store.draft(self.stage.name, self.key) as draft,
            shown_progress(self.stage.name) as listener,
            file_faults_told(self.store.root),  # before the draft is removed, which makes room
        ):
            job = {
                "function": self.stage.function,
                "config_type": f"{type(self.config).__module__}:{type(self.config).__qualname__}",
                "config": self.config.model_dump(mode="json"),
                "out": str(draft / "payload"),
                "scratch": str(scratch),
                "inputs": each_input(self.inputs, lambda artifact: str(self.store.payload(artifact))),
            }
            started, clock = datetime.now(UTC), time.monotonic()
            notes = run_job(job, isolate=isolated(self.stage.gpu), listener=listener, logger=log)
            seconds = time.monotonic() - clock
            kill_point("drafted")
            artifact = self.store.commit(
                draft,
                stage=self.stage.name,
                key=self.key,
                version=self.stage.version,
                config=cast(dict[str, Any], canonical(self.config)),
                inputs=each_input(self.inputs, Artifact.model_dump),
                notes=notes,
                provenance=_provenance(started, seconds),
            )
        log.info("%s %s written in %.1f s", self.stage.name, self.key[:12], seconds)
        return artifact


def asset_key(stage: str, key: str) -> str:
    """The name of a stage's output as a Prefect asset."""
    return f"sublim://{stage.replace('_', '-')}/{key[:12]}"


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed stage is worth another try: its process died, or the network or a disk hiccuped."""
    # A plain function: Prefect 3.7.7 silently ignores any other callable here.
    error = state.result(raise_on_failure=False)
    if isinstance(error, StoreUnreachable):
        return not isinstance(error, StoreRefused)
    return isinstance(error, StageKilled) or is_network(error)


def flatten(inputs: Mapping[str, Inputs]) -> list[Artifact]:
    """Every artifact among the inputs, those in lists and mappings too."""
    found: list[Artifact] = []
    each_input(inputs, found.append)
    return found


def _provenance(started: datetime, seconds: float) -> Provenance:
    commit, dirty = code_version()
    return Provenance(
        commit=commit,
        dirty=dirty,
        packages=package_versions(),
        python=python_version(),
        host=gethostname(),
        device=device(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        flow_run=flow_run.get_id(),
    )
