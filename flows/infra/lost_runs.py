"""Prefect automations for runs whose worker was lost: the server hands them to another worker, which resumes them.

A run sends a heartbeat every 30 s. The server marks a run without heartbeats as Crashed. It schedules a crashed run
again until the run was started three times; finished stages come from the cache. A run that *failed* (a wrong setting,
too little GPU memory, a bug) is not scheduled again, because it would fail again.
"""

from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from prefect.automations import Automation
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

Labels = dict[str, str | list[str]]


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


def automations(patience: Patience) -> list[Automation]:
    """The automations to register on the server."""
    runs: Labels = {"prefect.resource.id": "prefect.flow-run.*"}
    deployed: Labels = {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"}
    again: dict[str, Any] = {"state": StateType.SCHEDULED, "name": "AwaitingRetry"}
    silent = "no heartbeat: the worker or its machine was lost"
    lost = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=silent, force=False)
    return [
        Automation(
            name="sublim: mark a run without heartbeats as crashed",
            trigger=_within(
                patience.silence,
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.*"},
                match=runs,
            ),
            actions=[lost],
        ),
        Automation(
            name="sublim: schedule a run again that its worker never started",
            trigger=_within(
                patience.start,
                after=TAKEN,
                expect={"prefect.flow-run.*"},
                match=runs,
                related=deployed,
            ),
            actions=[ChangeFlowRunState(**again, message="the worker that took the run never started it", force=True)],
        ),
        Automation(
            name="sublim: schedule a crashed run again",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Crashed"},
                # Not "0": code that cannot be imported crashes before its first start, and would be scheduled for ever.
                match=ResourceSpecification({**runs, "prefect.run-count": [str(n) for n in range(1, STARTS)]}),
                match_related=ResourceSpecification(deployed),
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[ChangeFlowRunState(**again, message="its worker was lost; another one resumes it", force=False)],
        ),
        *(_overlong(tag, seconds) for tag, seconds in (("gpu", patience.gpu), ("cpu", patience.cpu))),
    ]


def _overlong(tag: str, seconds: float) -> Automation:
    return Automation(
        name=f"sublim: cancel a {tag} run after {seconds / 3600:g} h",
        trigger=_within(
            seconds,
            after={RUNNING},
            # RUNNING is expected too, so that the clock starts again when a crashed run is resumed. Otherwise the
            # crash would count as the end, and the resumed run would have no limit.
            expect=ENDED | {RUNNING},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"},
        ),
        # Not CancelFlowRun: its message would only give the automation's id.
        actions=[
            ChangeFlowRunState(
                state=StateType.CANCELLING,
                name="Cancelling",
                message=f"it ran for more than {seconds / 3600:g} h, the limit for runs tagged {tag}",
                force=False,
            )
        ],
    )


def _within(
    seconds: float, *, after: set[str], expect: set[str], match: Labels, related: Labels | None = None
) -> EventTrigger:
    """A trigger that fires for a run when none of the `expect` events follows an `after` event within `seconds`."""
    return EventTrigger(
        after=after,
        expect=expect,
        match=ResourceSpecification(match),
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
            client.create_automation(AutomationCore.model_validate(rule.model_dump(exclude={"id"})))
    return [rule.name for rule in rules]
