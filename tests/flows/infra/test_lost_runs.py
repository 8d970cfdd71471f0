"""The rules for lost runs, asked as the server asks them: which end of a run has it scheduled again."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.events.actions import ChangeFlowRunState
from prefect.server.events.schemas.automations import EventTrigger, Posture
from prefect.server.events.schemas.events import ReceivedEvent

from flows.infra.lost_runs import STARTS, Patience, automations


def scheduled_again(state: str, *, starts: int, deployed: bool = True) -> bool:
    """Whether a rule answers this end of a run by scheduling it."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.run-count": str(starts)}
    deployment = {"prefect.resource.id": f"prefect.deployment.{uuid4()}", "prefect.resource.role": "deployment"}
    event = ReceivedEvent(
        occurred=datetime.now(UTC),
        event=f"prefect.flow-run.{state}",
        resource=resource,  # pyright: ignore[reportArgumentType]
        related=[deployment] if deployed else [],  # pyright: ignore[reportArgumentType]
        id=uuid4(),
    )
    found: list[bool] = []
    for rule in automations(Patience()):
        trigger = EventTrigger.model_validate(rule.trigger.model_dump())
        action = rule.actions[0]
        assert isinstance(action, ChangeFlowRunState)
        again = action.state == "SCHEDULED" and trigger.posture == Posture.Reactive
        found.append(again and trigger.covers(event) and trigger.expects(event.event))
    return any(found)


@pytest.mark.parametrize("starts", range(1, STARTS))
def test_a_run_that_crashed_is_scheduled_again(starts: int) -> None:
    assert scheduled_again("Crashed", starts=starts)


@pytest.mark.parametrize("state", ["Failed", "Cancelled", "TimedOut", "Completed", "Cached"])
def test_a_run_that_ended_by_itself_is_left_alone(state: str) -> None:
    assert not scheduled_again(state, starts=1)


def test_no_run_is_started_for_ever_or_without_a_worker() -> None:
    assert not scheduled_again("Crashed", starts=STARTS)
    assert not scheduled_again("Crashed", starts=0)  # it could not even be imported
    assert not scheduled_again("Crashed", starts=1, deployed=False)
