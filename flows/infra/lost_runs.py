"""What becomes of runs whose worker was lost: the server notices, and hands them to another worker, which resumes.

A run says every 30 s that it is alive. One that falls silent is marked Crashed; one that crashed is scheduled again
until it has been started three times, and takes its finished stages from the cache. A run that *failed* (a wrong
setting, a GPU whose memory does not suffice, a bug) is left alone: another try would end the same way.
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
"""How often a run is started at most."""
ENDED = {f"prefect.flow-run.{name}" for name in ("Completed", "Cached", "Failed", "Crashed", "Cancelled")}
TAKEN = {f"prefect.flow-run.{name}" for name in ("Pending", "Submitting", "InfrastructurePending")}
"""What a worker says of a run, one after the other, before the run itself says that it is running."""
RUNNING = "prefect.flow-run.Running"

Labels = dict[str, str | list[str]]


class Patience(NamedTuple):
    """How long the server waits, in seconds."""

    silence: float = 100.0
    """For a sign of life of a run; they come every 30 s."""
    start: float = 300.0
    """For a run that a worker took to start."""
    gpu: float = 72 * 3600.0
    """For a run on a GPU to end, from each of its starts."""
    cpu: float = 24 * 3600.0
    """For any other."""


def automations(patience: Patience) -> list[Automation]:
    """The rules, by what they watch."""
    runs: Labels = {"prefect.resource.id": "prefect.flow-run.*"}
    deployed: Labels = {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"}
    again: dict[str, Any] = {"state": StateType.SCHEDULED, "name": "AwaitingRetry"}
    silent = "no sign of life: its worker or its machine was lost"
    lost = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=silent, force=False)
    return [
        Automation(
            name="sublim: a silent run has crashed",
            trigger=_within(
                patience.silence,
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.*"},
                match=runs,
            ),
            actions=[lost],
        ),
        Automation(
            name="sublim: a run that never started goes to another worker",
            trigger=_within(
                patience.start,
                after=TAKEN,
                expect={"prefect.flow-run.*"},
                match=runs,
                related=deployed,
            ),
            actions=[ChangeFlowRunState(**again, message="its worker never started it", force=True)],
        ),
        Automation(
            name="sublim: a crashed run goes to another worker",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Crashed"},
                # Not "0": what cannot even be imported crashes before its first start, and would do so for ever.
                match=ResourceSpecification({**runs, "prefect.run-count": [str(n) for n in range(1, STARTS)]}),
                match_related=ResourceSpecification(deployed),
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[ChangeFlowRunState(**again, message="lost: another worker goes on", force=False)],
        ),
        *(_overlong(tag, seconds) for tag, seconds in (("gpu", patience.gpu), ("cpu", patience.cpu))),
    ]


def _overlong(tag: str, seconds: float) -> Automation:
    return Automation(
        name=f"sublim: a {tag} run of more than {seconds / 3600:g} h is cancelled",
        trigger=_within(
            seconds,
            after={RUNNING},
            # With its start among them, a run that crashed and was resumed is waited for anew; otherwise its first
            # end would count for ever, and what was resumed would have no limit.
            expect=ENDED | {RUNNING},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"},
        ),
        # Not CancelFlowRun, whose message would tell a number of the automation's only.
        actions=[
            ChangeFlowRunState(
                state=StateType.CANCELLING,
                name="Cancelling",
                message=f"more than {seconds / 3600:g} h, the limit of runs tagged {tag}",
                force=False,
            )
        ],
    )


def _within(
    seconds: float, *, after: set[str], expect: set[str], match: Labels, related: Labels | None = None
) -> EventTrigger:
    """Fires for a run when, after one event, none of the expected ones comes in time."""
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
    """Puts the rules on the server in place of earlier ones of ours; gives their names."""
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
