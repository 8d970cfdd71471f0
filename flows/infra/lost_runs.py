"""Prefect automations for runs whose worker was lost: the server hands them to another worker, which resumes them.

A run sends a heartbeat every 30 s. The server marks a run without heartbeats as Crashed. It schedules a crashed run
again until the run was started three times; finished stages come from the cache. A run that *failed* (a wrong setting,
too little GPU memory, a bug) is not scheduled again, because it would fail again.
"""

from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

STARTS = 3
"""The most times that a run is started."""
ENDED = {f"prefect.flow-run.{name}" for name in ("Completed", "Cached", "Failed", "Crashed", "Cancelled")}
TAKEN = {f"prefect.flow-run.{name}" for name in ("Pending", "Submitting", "InfrastructurePending")}
"""States that a worker reports between taking a run and the start of its process."""
RUNNING = "prefect.flow-run.Running"
ANY = "prefect.flow-run.*"

Labels = dict[str, str | list[str]]
RUNS: Labels = {"prefect.resource.id": ANY}
DEPLOYED: Labels = {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"}
AGAIN: dict[str, Any] = {"state": StateType.SCHEDULED, "name": "AwaitingRetry"}


class Patience(NamedTuple):
    """How long the server waits, in seconds."""

    silence: float = 100.0
    """Without a heartbeat, before a run counts as crashed. Heartbeats come every 30 s."""
    start: float = 300.0
    """For a run to start after a worker took it."""
    gpu: float = 72 * 3600.0
    """For a run tagged `gpu` to end, counted from each start."""
    cpu: float = 24 * 3600.0
    """For a run tagged `cpu` to end."""


def automations(patience: Patience) -> list[AutomationCore]:
    """The automations to register on the server."""
    silent = "no heartbeat: the worker or its machine was lost"
    limits = {"gpu": patience.gpu, "cpu": patience.cpu}
    return [
        _rule(
            "mark a run without heartbeats as crashed",
            _within(patience.silence, after={"prefect.flow-run.heartbeat"}, expect={ANY}),
            ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=silent, force=False),
        ),
        _rule(
            "schedule a run again that its worker never started",
            _within(patience.start, after=TAKEN, expect={ANY}, related=DEPLOYED),
            ChangeFlowRunState(**AGAIN, message="the worker that took the run never started it", force=True),
        ),
        _rule(
            "schedule a crashed run again",
            EventTrigger(
                expect={"prefect.flow-run.Crashed"},
                # Not "0": code that cannot be imported crashes before its first start, and would be scheduled for ever.
                match=ResourceSpecification({**RUNS, "prefect.run-count": [str(n) for n in range(1, STARTS)]}),
                match_related=ResourceSpecification(DEPLOYED),
                posture=Posture.Reactive,
                threshold=1,
            ),
            ChangeFlowRunState(**AGAIN, message="its worker was lost; another one resumes it", force=False),
        ),
        *(_overlong(tag, seconds) for tag, seconds in limits.items()),
    ]


def _overlong(tag: str, seconds: float) -> AutomationCore:
    tagged: Labels = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"}
    message = f"it ran for more than {seconds / 3600:g} h, the limit for runs tagged {tag}"
    return _rule(
        f"cancel a {tag} run after {seconds / 3600:g} h",
        # RUNNING is expected too, so that the clock starts again when a crashed run is resumed. Otherwise the crash
        # would count as the end, and the resumed run would have no limit.
        _within(seconds, after={RUNNING}, expect=ENDED | {RUNNING}, related=tagged),
        # Not CancelFlowRun: its message would only give the automation's id.
        ChangeFlowRunState(state=StateType.CANCELLING, name="Cancelling", message=message, force=False),
    )


def _rule(about: str, trigger: EventTrigger, action: ChangeFlowRunState) -> AutomationCore:
    return AutomationCore(name=f"sublim: {about}", trigger=trigger, actions=[action])


def _within(seconds: float, *, after: set[str], expect: set[str], related: Labels | None = None) -> EventTrigger:
    """A trigger that fires for a run when none of the `expect` events follows an `after` event within `seconds`."""
    return EventTrigger(
        after=after,
        expect=expect,
        match=ResourceSpecification(RUNS),
        match_related=ResourceSpecification(related or {}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )


def install(patience: Patience = Patience()) -> list[str]:  # noqa: B008 - a named tuple does not change
    """Registers the automations on the server, replaces those of an earlier call, and returns their names."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        response = client.request("POST", "/automations/filter", json={"limit": 200})
        for known in response.json():
            if str(known["name"]).startswith("sublim: "):
                client.delete_automation(UUID(known["id"]))
        rules = automations(patience)
        for rule in rules:
            client.create_automation(rule)
    return [rule.name for rule in rules]
