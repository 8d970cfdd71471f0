"""Stages: functions of `sublim` that flows call as cached Prefect tasks."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import Signature, signature
from typing import Any, Generic, ParamSpec, cast

from prefect.client.schemas.objects import State

from sublim.core.config import Config
from sublim.core.digest import digest
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from tasks.job import Inputs, Job, flatten
from tasks.quiet import install

install()

P = ParamSpec("P")


class NotThere(Exception):
    """A stage whose output the store does not hold, met while stages were only looked up."""


_looking_up: ContextVar[bool] = ContextVar("looking_up", default=False)


@contextmanager
def looking_up() -> Generator[None]:
    """Inside, stages are looked up in the store and never run: one that is not there raises NotThere.

    Needs no Prefect.
    """
    token = _looking_up.set(True)
    try:
        yield
    finally:
        _looking_up.reset(token)


def is_looking_up() -> bool:
    """Whether stages are only looked up here."""
    return _looking_up.get()


class StageRun(Config):
    """One stage of a flow run, as its report shows it and its record keeps it."""

    stage: str
    label: str
    state: str
    """Cached, Completed or Failed."""
    seconds: float
    key: str
    content: str | None


class RunLog:
    """What a flow run has called so far."""

    def __init__(self) -> None:
        self.stages: list[StageRun] = []
        self.states: dict[str, State[Any]] = {}
        """The Prefect states of the tasks that gave artifacts, under the artifacts' keys."""

    def upstream(self, inputs: Mapping[str, Inputs]) -> list[State[Any]]:
        """The states of the tasks that the inputs came from; Prefect's UI draws an edge from each."""
        keys = dict.fromkeys(artifact.key for artifact in flatten(inputs))
        return [self.states[key] for key in keys if key in self.states]


run_log: ContextVar[RunLog | None] = ContextVar("run_log", default=None)


@dataclass(frozen=True)
class Stage(Generic[P]):
    """A stage function of `sublim` as a cached task; `tasks/stages.py` declares them all.

    `function` is `module:name`, so that flows need not import what the body needs. Bump `version` when a change to
    the code changes what the stage writes; a golden test notices when that is forgotten.
    """

    name: str
    function: str
    version: int = 1
    gpu: bool = False
    """Whether the body uses a GPU where there is one, and then runs in a process of its own."""
    declared: Signature | None = None
    """What a call may give; a call that gives anything else raises TypeError before anything is looked up."""

    def key(self, config: Config, inputs: Mapping[str, Inputs]) -> str:
        """SHA-256 of the stage, its version, the config's identity and the inputs' contents."""
        return digest({"stage": self.name, "version": self.version, "config": config, "inputs": dict(inputs)})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Artifact:
        """The stage's output: from the cache when it is there and intact, otherwise made now."""
        if self.declared is not None:
            self.declared.bind(*args, **kwargs)
        config, inputs = cast(Config, args[0]), cast(dict[str, Any], kwargs)
        label = str(inputs.pop("label", ""))
        job = Job(self, config.resolved(), inputs, open_store())
        return self._look_up(job) if is_looking_up() else self._run(job, label)

    def _run(self, job: Job, label: str) -> Artifact:
        log, started = run_log.get(), time.monotonic()
        upstream = log.upstream(job.inputs) if log else []
        state: State[Any] = job.task(label)(return_state=True, wait_for=upstream)
        result = state.result(raise_on_failure=False)
        artifact = result if isinstance(result, Artifact) else None
        if log is not None:
            run = StageRun(
                stage=self.name,
                label=label,
                state="Failed" if artifact is None else "Cached" if state.name == "Cached" else "Completed",
                seconds=time.monotonic() - started,
                key=job.key,
                content=artifact and artifact.content,
            )
            log.stages.append(run)
            log.states[job.key] = state
        if artifact is None:
            raise cast(BaseException, result)
        return artifact

    def _look_up(self, job: Job) -> Artifact:
        found = job.store.find(self.name, job.key)
        if found is None:
            raise NotThere(f"{self.name} {job.key[:12]} is not in the store")
        return found


def stage(
    function: str, *, name: str | None = None, version: int = 1, gpu: bool = False
) -> Callable[[Callable[P, Artifact]], Stage[P]]:
    """Declares a stage by the signature of its calls: a config, a label, and the artifacts it reads, by name."""

    def declare(calls: Callable[P, Artifact]) -> Stage[P]:
        return Stage(name or calls.__name__, function, version, gpu, signature(calls))

    return declare
