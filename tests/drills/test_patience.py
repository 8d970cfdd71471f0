"""Runs that take too long and runs that no worker starts: the server's rules fire, with periods of seconds."""

import os
import signal
import sys
from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Pending, Running

from flows.infra.lost_runs import Patience, install
from tests.drills.drill_flows import drill, linger
from tests.drills.test_drills import bodies, deployed, states
from tests.lab import Lab, lab_at, until
from tests.postgres import for_prefect, running_postgres
from tests.tasks.test_processes import wait_until_gone

pytestmark = pytest.mark.slow

LIMIT = 60.0  # a run needs up to 20 s until its stage's process lives, twice that on a busy machine
START = 40.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_postgres() as url, lab_at(tmp_path_factory.mktemp("lab"), database=for_prefect(url)) as lab:
        install(Patience(start=START, gpu=LIMIT, cpu=3600.0))
        lab.pool("patience", SUBLIM_ISOLATE="1")
        yield lab


def messages(run: UUID) -> list[str]:
    with get_client(sync_client=True) as client:
        found = client.read_flow_run_states(run)
    return [state.message or "" for state in found]


def times(run: UUID, name: str) -> list[float]:
    with get_client(sync_client=True) as client:
        return sorted(state.timestamp.timestamp() for state in client.read_flow_run_states(run) if state.name == name)


def test_a_run_over_its_limit_is_cancelled_and_its_stage_ends(lab: Lab) -> None:
    journal, other = lab.folder / "journal of gpu", lab.folder / "journal of cpu"
    deployed(linger, "patience", name="gpu", tags=["gpu"])
    deployed(drill, "patience", name="cpu", tags=["cpu"])
    run = lab.hand_over("linger/gpu", journal=str(journal))
    within = lab.hand_over("drill/cpu", journal=str(other), size=26, pieces=600, pause=0.5)
    # What a machine that was lost left: the limit holds for the run's second start, too.
    with get_client(sync_client=True) as client:
        for state in (Pending(), Running(), Crashed()):
            client.set_flow_run_state(run, state)
    until(lambda: states(run)[-1] == "AwaitingRetry", 30, lambda: str(states(run)))
    with lab.worker("patience", limit=2):
        until(lambda: journal.exists() and other.exists(), LIMIT, lab.logs)
        pids = [int(pid) for pid in journal.read_text().split()]
        lab.wait(run, "Cancelled", seconds=LIMIT + 60)
        wait_until_gone(pids, seconds=10)
        assert f"more than {LIMIT / 3600:g} h, the limit for runs tagged gpu" in messages(run)
        first, second = times(run, "Running")
        (cancelled,) = times(run, "Cancelling")
        assert first < second <= cancelled - LIMIT
        # Another tag's limit is another's.
        assert lab.state(within) == "Running"


def test_a_run_that_its_worker_never_started_goes_to_another_worker(lab: Lab) -> None:
    flag = lab.folder / "taken"
    start = f"{sys.executable} -m prefect flow-run execute"
    stuck = f"bash -c 'test -e {flag} || {{ touch {flag}; exec sleep 600; }}; exec {start}'"
    deployed(drill, "patience", name="stuck", job_variables={"command": stuck})
    journal = lab.folder / "journal"
    with lab.worker("patience") as worker:
        run = lab.hand_over("drill/stuck", journal=str(journal), size=25, pieces=2, pause=0.1)
        until(flag.exists, 60, lab.logs)
        assert lab.state(run) in ("Pending", "Submitting", "InfrastructurePending")
        os.killpg(worker.pid, signal.SIGKILL)
    until(lambda: "AwaitingRetry" in states(run), START + 60, lambda: str(states(run)))
    assert "the worker that took the run never started it" in messages(run)
    assert bodies(journal) == 0
    with lab.worker("patience"):
        lab.wait(run, "Completed", "Failed", "Crashed")
        assert lab.state(run) == "Completed", lab.logs()
    assert bodies(journal) == 1
