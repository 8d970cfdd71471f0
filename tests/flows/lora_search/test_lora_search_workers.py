"""Four flow runs on one study in PostgreSQL: real servers, every stage real, one worker killed in a trial."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from optuna.trial import FrozenTrial, TrialState
from prefect.client.orchestration import get_client

from flows.lora_search.config import LoraSearchConfig, study_config
from flows.pipeline.checks import check
from flows.pipeline.config import PipelineConfig
from flows.runs.settings import assignments, build, load_preset, merge
from sublim.core.owner import machine
from sublim.search.config import Journal
from sublim.search.opening import open_search
from sublim.search.space import student_with
from sublim.search.study import Measured, attempts_by_slot, work
from tests.flows.lora_search.test_lora_search import small
from tests.postgres import running_postgres

pytestmark = pytest.mark.slow
TRIALS, STARTUP, GRACE = 16, 8, 4


class Worker(NamedTuple):
    """A flow run that has ended."""

    code: int
    outcome: dict[str, Any]
    log: str


class Finished(NamedTuple):
    """What four flow runs made of one study."""

    config: LoraSearchConfig
    workers: list[Worker]
    """The first was killed; the last is the one that also measures the default."""
    attempts: dict[int, list[FrozenTrial]]
    """As the database has them."""
    flow_runs: dict[str, int]
    """As the Prefect server has them: how many in which state."""


def elsewhere(command: list[str]) -> list[str]:
    """The command in a process namespace of its own, as in a container: from outside nobody can ask whether it lives.

    Not as its first process, which no signal from within can kill.
    """
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [
        "unshare",
        *own,
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        '"$@"; exit $?',
        "sh",
        *command,
    ]


def settings(published: Path, url: str) -> list[str]:
    """The small search for the loss alone, nothing pruned, so that every trial has to end complete."""
    wanted = [
        "objectives=[loss]",
        "pruning=null",
        "confirm=null",
        f"trials={TRIALS}",
        f"sampler.startup={STARTUP}",
        "student.updates=16",
        "student.checkpoint_every=2",
        "study=four",
        f"storage={{kind: postgres, url: '{url}'}}",
        f"worker={{heartbeat: 1, grace: {GRACE}}}",
    ]
    return [*small(published), *(part for each in wanted for part in ("--set", each))]


@pytest.fixture(scope="module")
def finished(published: Path, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    if subprocess.run(elsewhere(["true"]), capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us make no process namespace")
    folder = tmp_path_factory.mktemp("four")
    with running_postgres() as url:
        options = settings(published, url)
        plain = [sys.executable, "-m", "flows", "run", "lora-search", "--json", *options]
        trials = [*plain, "--set", "worker.role=trials"]
        environment = os.environ | {"SUBLIM_STORE": str(folder / "store")}
        deadly = environment | {"SUBLIM_KILL_AT": "update-9"}
        started: list[subprocess.Popen[bytes]] = []
        for number, command in enumerate([elsewhere(trials), trials, trials, plain]):
            with (folder / f"{number}.out").open("wb") as out, (folder / f"{number}.log").open("wb") as log:
                env = environment if number else deadly
                started.append(subprocess.Popen(command, env=env, stdout=out, stderr=log))
        try:
            codes = [process.wait(300) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        logs = [(folder / f"{number}.log").read_text() for number in range(4)]
        assert codes == [128 + signal.SIGKILL, 0, 0, 0], "\n".join(log[-2000:] for log in logs)
        outcomes = [json.loads((folder / f"{number}.out").read_text().splitlines()[-1]) for number in (1, 2, 3)]
        config = built(options)
        attempts = attempts_by_slot(open_search(study_config(config, updates=16)).study)
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.parameters.get("settings", {}).get("study") == "four"]
    states = Counter(str(run.state_name) for run in runs)
    workers = [Worker(*each) for each in zip(codes, [{}, *outcomes], logs, strict=True)]
    return Finished(config, workers, attempts, dict(states))


def built(options: list[str]) -> LoraSearchConfig:
    tree = assignments(LoraSearchConfig, [text for text in options if text != "--set"])
    return build(LoraSearchConfig, merge(load_preset("lora_search", "quickstart"), tree))


def test_every_trial_is_finished_and_none_was_made_twice(finished: Finished) -> None:
    records = finished.workers[-1].outcome["trials"]
    assert [record["number"] for record in records] == list(range(TRIALS))
    assert {record["state"] for record in records} == {"complete"}
    ends = [[trial.state for trial in attempts] for attempts in finished.attempts.values()]
    assert sorted(state == TrialState.COMPLETE for states in ends for state in states) == [False] + [True] * TRIALS
    trained = Counter(
        (stage["label"], stage["state"])
        for worker in finished.workers[1:]
        for stage in worker.outcome["stages"]
        if stage["stage"] == "train_student" and stage["label"].startswith("trial ")
    )
    # A trial done by two workers, or again by one, would be here twice, or once more as Cached.
    assert trained == {(f"trial {number} owl", "Completed"): 1 for number in range(TRIALS)}
    made = [
        {s["label"] for s in worker.outcome["stages"] if s["stage"] == "train_student"}
        for worker in finished.workers[1:]
    ]
    assert all(made)


def test_killed_workers_trial_is_failed_by_its_missing_heartbeat_and_made_with_the_same_parameters(
    finished: Finished,
) -> None:
    ((lost, again),) = (attempts for attempts in finished.attempts.values() if len(attempts) > 1)
    assert lost.state == TrialState.FAIL
    assert lost.user_attrs["owner"][0] != machine()  # so nothing but its silence could tell of its death
    assert lost.datetime_start is not None
    assert lost.datetime_complete is not None
    assert (lost.datetime_complete - lost.datetime_start).total_seconds() >= GRACE
    assert again.params == lost.params
    told = f"trial {lost.user_attrs['slot']} was left unfinished and is made again"
    assert sum(told in worker.log for worker in finished.workers) == 1
    assert again.user_attrs["owner"][0] == machine()


def test_parameters_are_those_that_the_sampler_gives_and_no_two_trials_share_them(
    finished: Finished, tmp_path: Path
) -> None:
    """Until it learns, a slot's draws are its own, whoever asks: the first ones are those of a lonely worker."""
    params = {slot: attempts[-1].params for slot, attempts in finished.attempts.items()}
    assert len({json.dumps(each, sort_keys=True) for each in params.values()}) == TRIALS
    alone = study_config(finished.config, updates=16).model_copy(
        update={"storage": Journal(path=tmp_path / "s.journal"), "trials": STARTUP}
    )
    search = open_search(alone)
    assert work(search, lambda asked: Measured([1.0], {}))
    assert {slot: params[slot] for slot in range(STARTUP)} == {each.number: each.params for each in search.records()}


def test_best_parameters_are_a_preset_of_the_pipeline(finished: Finished) -> None:
    outcome = finished.workers[-1].outcome
    losses = {record["number"]: record["values"][0] for record in outcome["trials"]}
    assert outcome["best"]["trial"] == min(losses, key=losses.__getitem__)
    # What `sublim run pipeline --preset` does before it runs anything.
    config = build(PipelineConfig, load_preset("pipeline", outcome["best_preset"]))
    check(config)
    wanted = student_with(finished.config.student, study_config(finished.config, 16).space, outcome["best"]["params"])
    assert config.student == wanted


def test_server_knows_four_flow_runs_of_which_three_ended_well(finished: Finished) -> None:
    assert sum(finished.flow_runs.values()) == 4
    assert finished.flow_runs["Completed"] == 3
