"""What happens when things go wrong in a lab, with a real server, real workers and real kills.

The first drill takes longest, because the server must notice that a machine is gone: the others run meanwhile.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.flows import Flow
from prefect.states import Cancelling

from flows.infra.lost_runs import Patience, install
from sublim.store.folder import Store
from tests.drills.drill_flows import drill, linger
from tests.lab import ROOT, Lab, end, lab_at, until
from tests.postgres import for_prefect, running_postgres
from tests.server import free_port
from tests.tasks.test_processes import wait_until_gone

SILENCE = 40.0  # a healthy run is silent for 30


def deployed(flow: Flow[..., Any], pool: str, name: str = "drills", **options: Any) -> UUID:
    """A deployment of one of the drills' flows, from this checkout."""
    entrypoint = f"tests/drills/drill_flows.py:{flow.name}"
    source = flow.from_source(source=str(ROOT), entrypoint=entrypoint)
    found = source.deploy(
        name=name,
        work_pool_name=pool,
        job_variables={"working_dir": str(ROOT), **options.pop("job_variables", {})},
        print_next_steps=False,
        ignore_warnings=True,
        **options,
    )
    assert isinstance(found, UUID)
    return found


def states(run_id: UUID) -> list[str]:
    with get_client(sync_client=True) as client:
        return [state.name or "" for state in sorted(client.read_flow_run_states(run_id), key=lambda s: s.timestamp)]


def tasks_of(run_id: UUID) -> list[tuple[str, str]]:
    """Stage and state of each task run, in the order in which they began."""
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    ordered = sorted(found, key=lambda run: str(run.start_time or ""))
    return [(run.name.split()[0], run.state.name if run.state and run.state.name else "") for run in ordered]


def bodies(journal: Path) -> int:
    """How often the body of `shards` was begun."""
    return journal.read_text(encoding="utf-8").count("\n") if journal.exists() else 0


def pieces(lab: Lab) -> int:
    return len(list((lab.store / "scratch" / "shards").glob("*/*.bin")))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_postgres() as url, lab_at(tmp_path_factory.mktemp("lab"), database=for_prefect(url)) as lab:
        install(Patience(silence=SILENCE))
        lab.pool("drills")
        deployed(drill, "drills")
        deployed(linger, "drills", job_variables={"env": {"SUBLIM_ISOLATE": "1"}})
        yield lab


@pytest.fixture(scope="module")
def lost(lab: Lab) -> UUID:
    """A run whose machine is gone: worker and flow were killed in the middle of the second stage."""
    run = lab.hand_over("drill/drills", journal=str(lab.folder / "lost"), size=21)
    with lab.worker("drills") as worker:
        until(lambda: pieces(lab) >= 2, 60, lab.logs)
        children = [int(pid) for pid in (lab.folder / "lost").read_text().split()[1::2]]
        for pid in (worker.pid, *children):
            os.kill(pid, signal.SIGKILL)
    assert lab.state(run) == "Running"
    return run


@pytest.fixture(scope="module")
def workers(lab: Lab, lost: UUID) -> Iterator[None]:
    """Two other machines."""
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(lab.worker("drills", limit=2))
        yield


@pytest.mark.usefixtures("workers")
def test_work_asked_for_twice_is_done_once(lab: Lab) -> None:
    journal = lab.folder / "twice"
    runs = [lab.hand_over("drill/drills", journal=str(journal), size=22, pause=0.2) for _ in range(2)]
    for run in runs:
        lab.wait(run, "Completed", "Failed", "Crashed")
    assert bodies(journal) == 1

    def ended() -> list[str]:
        return sorted(state for run in runs for _, state in tasks_of(run))

    # The server hears of the ends of task runs a little later.
    until(lambda: ended() == ["Cached", "Cached", "Completed", "Completed"], 20, lambda: str(ended()))


@pytest.mark.usefixtures("workers")
def test_cancelling_ends_the_process_of_a_stage_and_all_it_started(lab: Lab) -> None:
    journal = lab.folder / "relatives"
    run = lab.hand_over("linger/drills", journal=str(journal))
    until(journal.exists, 60, lab.logs)
    pids = [int(pid) for pid in journal.read_text().split()]
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling())
    wait_until_gone(pids, seconds=10)
    lab.wait(run, "Cancelled", seconds=30)
    assert not (lab.store / "relatives").exists()


@pytest.mark.usefixtures("workers")
def test_a_schedule_that_fires_while_a_run_goes_on_waits_for_it(lab: Lab) -> None:
    journal = str(lab.folder / "scheduled")
    first = deployed(
        drill,
        "drills",
        name="limited",
        concurrency_limit=1,
        interval=timedelta(seconds=5),
        parameters={"journal": journal, "size": 23, "pieces": 24, "pause": 0.5},
    )

    def runs(*names: str) -> list[UUID]:
        which = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[first]),
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[*names])),
        )
        with get_client(sync_client=True) as client:
            return [run.id for run in client.read_flow_runs(flow_run_filter=which)]

    until(lambda: runs("AwaitingConcurrencySlot"), 60, lab.logs)
    until(lambda: bodies(Path(journal)), 30, lab.logs)
    going = runs("Running", "Pending")
    with get_client(sync_client=True) as client:
        client.delete_deployment(first)
        for run in going:
            client.set_flow_run_state(run, Cancelling())
    assert len(going) == 1
    assert bodies(Path(journal)) == 1


def test_the_nightly_evaluation_ships_inactive_and_is_planned_once_it_is_switched_on(lab: Lab) -> None:
    lab.pool("cpu")
    with get_client(sync_client=True) as client:

        def planned() -> list[tuple[int, int]]:
            which = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[evaluation.id]))
            found = [run.expected_start_time for run in client.read_flow_runs(flow_run_filter=which)]
            return [(time.hour, time.minute) for time in found if time]

        lab.sublim("deploy", "evaluate/cpu")
        evaluation = client.read_deployment_by_name("evaluate/cpu")
        assert [schedule.active for schedule in evaluation.schedules] == [False]
        assert planned() == []
        lab.environment["SUBLIM_SCHEDULES"] = "true"
        lab.sublim("deploy", "evaluate/cpu")
        until(planned, 60)
        assert {*planned()} == {(2, 0)}
        client.delete_deployment(evaluation.id)


@pytest.mark.usefixtures("workers")
def test_a_run_whose_machine_is_lost_goes_to_another_worker_and_resumes(lab: Lab, lost: UUID) -> None:
    run = lab.wait(lost, "Completed", "Failed")
    assert run.run_count == 2
    history = states(lost)
    crashed = history.index("Crashed")
    assert history[crashed:][:2] == ["Crashed", "AwaitingRetry"]
    assert history[-1] == "Completed"
    until(lambda: tasks_of(lost)[-2:] == [("count", "Cached"), ("shards", "Completed")], 20)
    (manifest,) = [m for m in Store(lab.store).manifests() if m.notes.get("resumed") and m.config["size"] == 21]
    assert manifest.notes["resumed"] >= 2
    assert bodies(lab.folder / "lost") == 2


@pytest.mark.slow
def test_a_server_that_restarts_during_a_stage_costs_nothing(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        serving = stack.enter_context(ExitStack())
        lab = serving.enter_context(lab_at(tmp_path, port=port))
        lab.pool("drills")
        deployed(drill, "drills")
        worker = stack.enter_context(lab.worker("drills"))
        run = lab.hand_over("drill/drills", journal=str(tmp_path / "journal"), size=24, pieces=40)
        until(lambda: pieces(lab) >= 2, 60, lab.logs)
        serving.close()
        assert (tmp_path / "journal").exists()
        serving.enter_context(lab_at(tmp_path, port=port))
        done = lab.wait(run, "Completed", "Failed", "Crashed")
        assert done.state
        assert done.state.name == "Completed", lab.logs()
        assert bodies(tmp_path / "journal") == 1
        # A worker of this Prefect does not cancel after an outage; its unit restarts it with the server.
        end(worker)
        stack.enter_context(lab.worker("drills"))
        again = lab.hand_over("drill/drills", journal=str(tmp_path / "journal"), size=24, pieces=40)
        lab.wait(again, "Completed")
        assert bodies(tmp_path / "journal") == 1
