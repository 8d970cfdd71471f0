"""A study whose trials are arithmetic, with real storages, real processes and real kills."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest

from sublim.core.errors import UserError
from sublim.search.config import (
    FloatRange,
    Halving,
    Hyperband,
    IntRange,
    Journal,
    Multiple,
    Postgres,
    Pruning,
    SamplerConfig,
    StorageConfig,
    StudyConfig,
)
from sublim.search.opening import check_stored, open_search
from sublim.search.storage import drop_torn_line
from sublim.search.study import Asked, Measured, Search, Unmeasurable, work
from tests.crash.searcher import bowl
from tests.postgres import running_postgres

SPACE: dict[str, Any] = {
    "lr": FloatRange(low=1e-5, high=3e-4, log=True),
    "method.rank": IntRange(low=8, high=64, step=8),
    "method.alpha": Multiple(of="method.rank", values=(1.0, 1.5, 2.0)),
}
FIRST = {"lr": 2e-4, "method.rank": 8, "method.alpha/method.rank": 2.0}


def study(storage: Path | StorageConfig, **fields: Any) -> StudyConfig:
    place = Journal(path=storage / "studies" / "s.journal") if isinstance(storage, Path) else storage
    known: dict[str, Any] = {"name": "s", "trials": 12, "settings": {"space": {"lr": 1}}, "first": FIRST}
    known |= {"objectives": ("loss",), "space": SPACE, "sampler": SamplerConfig(startup=4), "updates": 64}
    return StudyConfig(storage=place, **(known | fields))


def outcome(search: Search) -> list[Any]:
    """Everything about the trials that must not depend on which workers died."""
    return [(each.number, each.state, each.params, each.values, each.intermediate) for each in search.records()]


def undisturbed(folder: Path, **fields: Any) -> list[Any]:
    config = study(folder, **fields)
    search = open_search(config)
    assert work(search, lambda asked: Measured([bowl(config, asked)], {}))
    return outcome(search)


def test_first_trial_is_the_default_and_the_sampler_learns(tmp_path: Path) -> None:
    trials = undisturbed(tmp_path, trials=24)
    assert trials[0][2] == FIRST
    assert [trial[0] for trial in trials] == list(range(24))
    early, late = ([trial[3][0] for trial in trials[part]] for part in (slice(1, 5), slice(-8, None)))
    assert sum(late) / len(late) < sum(early) / len(early)


def test_study_begun_anew_proposes_the_same_trials(tmp_path: Path) -> None:
    trials = undisturbed(tmp_path / "a")
    assert trials == undisturbed(tmp_path / "b")
    assert len({trial[2]["lr"] for trial in trials}) == len(trials), "a trial's place is part of its draws' seed"
    other = undisturbed(tmp_path / "c", sampler=SamplerConfig(startup=4, seed=1))
    assert [trial[2] for trial in other[1:]] != [trial[2] for trial in undisturbed(tmp_path / "d")[1:]]


def test_more_is_better_for_an_effect_and_less_for_a_loss(tmp_path: Path) -> None:
    """With the opposite direction and sign, the same measurements lead to the same proposals."""
    config = study(tmp_path / "effect", objectives=("effect",), trials=16)
    search = open_search(config)
    assert work(search, lambda asked: Measured([-bowl(config, asked)], {}))
    assert [record.params for record in search.records()] == [
        trial[2] for trial in undisturbed(tmp_path / "loss", trials=16)
    ]


def test_finished_study_goes_on_when_more_trials_are_asked_for(tmp_path: Path) -> None:
    undisturbed(tmp_path / "a", trials=6)
    made: list[int] = []
    config = study(tmp_path / "a", trials=12)
    search = open_search(config)

    def measure(asked: Asked) -> Measured:
        made.append(asked.slot)
        return Measured([bowl(config, asked)], {})

    assert work(search, measure)
    assert made == list(range(6, 12))
    assert outcome(search) == undisturbed(tmp_path / "b")


@pytest.mark.parametrize("pruning", [Halving(first=8), Hyperband(first=8, factor=2)])
def test_pruning_stops_some_trials_and_never_the_best(tmp_path: Path, pruning: Pruning) -> None:
    trials = undisturbed(tmp_path, pruning=pruning, trials=16)
    assert Counter(trial[1] for trial in trials).keys() == {"complete", "pruned"}
    finished = [trial[3][0] for trial in trials if trial[1] == "complete"]
    assert min(finished) < min(trial[3][0] for trial in trials if trial[1] == "pruned")


def command(config: StudyConfig, folder: Path, pause: float = 0.0) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(config.model_dump_json())
    return [sys.executable, "-m", "tests.crash.searcher", str(folder / "study.json"), str(folder / "log"), str(pause)]


def log(folder: Path, word: str, pid: int | None = None) -> list[int]:
    """Slots of all log lines that begin with `word`, or of one process's."""
    lines = (folder / "log").read_text().split("\n")[:-1] if (folder / "log").exists() else []
    found = [line.split() for line in lines if line.startswith(word)]
    return [int(slot) for _, slot, by in found if pid in (None, int(by))]


@pytest.mark.parametrize("pruning", [None, Hyperband(first=8, factor=2)], ids=["whole", "hyperband"])
def test_study_killed_at_any_point_ends_as_if_never_killed(tmp_path: Path, pruning: Pruning | None) -> None:
    """Every kill is a real one, at a later point each time; what was finished before is never measured again."""
    config, crashing = study(tmp_path, pruning=pruning), tmp_path / "crashing"
    points = ["created", "taking-0", "asked-1", "taking-4", "measured-6", "told-8", "asked-9"]
    for point in points if pruning is None else points[2:]:
        environment = os.environ | {"SUBLIM_KILL_AT": f"search:{point}"}
        worker = command(config, crashing)
        killed = subprocess.run(worker, env=environment, capture_output=True, text=True, check=False, timeout=60)
        # With pruning no trial need come to `measured`: then the run ends well.
        assert killed.returncode == -signal.SIGKILL or pruning is not None, killed.stderr
        finished = len(log(crashing, "end"))
    subprocess.run(command(config, crashing), check=True, capture_output=True, timeout=60)
    assert outcome(open_search(config)) == undisturbed(tmp_path / "undisturbed", pruning=pruning)
    if pruning is None:
        repeated = {slot for slot, count in Counter(log(crashing, "end")).items() if count > 1}
        assert finished >= 9
        assert repeated == {6}  # measured, killed before the study was told


def test_half_a_journal_line_left_by_a_kill_is_cut_off(tmp_path: Path) -> None:
    undisturbed(tmp_path, trials=3)
    journal = tmp_path / "studies" / "s.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"worker_id":"a')
    search = open_search(study(tmp_path, trials=5))
    assert work(search, lambda asked: Measured([1.0], {}))
    assert [trial[1] for trial in outcome(search)] == ["complete"] * 5
    assert journal.read_bytes().startswith(whole)
    drop_torn_line(journal)
    assert journal.read_bytes().endswith(b"\n")


def test_trial_of_a_silent_worker_elsewhere_is_taken_over_after_the_grace(tmp_path: Path) -> None:
    """A worker of another machine: whether its process lives cannot be asked, only its heartbeat can be missed."""
    config = study(tmp_path, trials=2, heartbeat=1, grace=2)
    search = open_search(config)
    lost = search.ask()
    assert lost is not None
    lost.trial.set_user_attr("owner", ["another machine", 1, 0.0])
    assert search.ask() is not None  # the second one: the first may still be alive
    assert search.ask() is None
    beat = tmp_path / "studies" / "s.beats" / str(lost.trial._trial_id)
    os.utime(beat, (time.time() - 3, time.time() - 3))
    again = search.ask()
    assert again is not None
    assert (again.slot, again.params) == (lost.slot, lost.params)
    search.make(lost, lambda asked: Measured([7.0], {}))  # it wakes up: too late, its value is not taken
    search.make(again, lambda asked: Measured([8.0], {}))
    assert search.records()[0].values == (8.0,)
    assert search.records()[0].retried == 1


def test_retry_keeps_its_parameters_whatever_was_learned_since(tmp_path: Path) -> None:
    config = study(tmp_path, trials=10, sampler=SamplerConfig(startup=2))
    search = open_search(config)
    asked = [search.ask() for _ in range(4)]
    lost = asked.pop()
    assert lost is not None
    for each in asked:
        assert each is not None
        search.make(each, lambda asked: Measured([bowl(config, asked)], {}))
    with pytest.raises(RuntimeError):
        search.make(lost, broken)
    again = search.ask()
    assert again is not None
    assert (again.slot, again.params) == (lost.slot, lost.params)


def broken(asked: Asked) -> Measured:
    raise RuntimeError("the machine is on fire")


@pytest.mark.parametrize("pruning", [Halving(first=8), Hyperband(first=8, factor=2)])
def test_attempt_that_failed_at_its_end_does_not_compete_with_its_retry(tmp_path: Path, pruning: Pruning) -> None:
    config = study(tmp_path / "failing", pruning=pruning, trials=16)
    search, failed = open_search(config), set[int]()

    def measure(asked: Asked) -> Measured:
        if asked.slot not in failed:
            failed.add(asked.slot)
            with suppress(optuna.TrialPruned):
                bowl(config, asked)
            broken(asked)
        return Measured([bowl(config, asked)], {})

    for _ in range(config.trials):
        with pytest.raises(RuntimeError):
            work(search, measure)
    assert work(search, measure)
    assert outcome(search) == undisturbed(tmp_path / "undisturbed", pruning=pruning, trials=16)


def test_trial_that_kills_every_worker_is_given_up_with_its_reason(tmp_path: Path) -> None:
    search = open_search(study(tmp_path, trials=2, attempts=2))

    def measure(asked: Asked) -> Measured:
        if asked.slot == 0:
            broken(asked)
        return Measured([1.0], {})

    for _ in range(2):
        with pytest.raises(RuntimeError):
            work(search, measure)
    assert work(search, measure)
    assert [record.state for record in search.records()] == ["failed", "complete"]
    assert search.records()[0].reason == "2 workers died during it"


def test_interrupting_a_worker_often_gives_no_trial_up(tmp_path: Path) -> None:
    search = open_search(study(tmp_path, trials=1, attempts=2))

    def interrupted(asked: Asked) -> Measured:
        raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            work(search, interrupted)
    assert work(search, lambda asked: Measured([1.0], {}))
    assert search.records()[0].state == "complete"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_objective_that_is_no_number_is_a_failed_trial_with_its_reason(tmp_path: Path, value: float) -> None:
    search = open_search(study(tmp_path, trials=3))
    assert work(search, lambda asked: Measured([value if asked.slot == 1 else 1.0], {}))
    failed = search.records()[1]
    assert (failed.state, failed.values) == ("failed", None)
    assert str(value) in str(failed.reason)
    assert search.study.best_value == 1.0


def test_missing_measurement_is_a_failed_trial_with_its_reason(tmp_path: Path) -> None:
    search = open_search(study(tmp_path, trials=1))

    def measure(asked: Asked) -> Measured:
        raise Unmeasurable("the training diverged")

    assert work(search, measure)
    assert search.records()[0].reason == "the training diverged"


def test_stored_study_with_another_space_is_refused_naming_what_differs(tmp_path: Path) -> None:
    undisturbed(tmp_path, trials=2)
    with pytest.raises(UserError, match=r"space\.lr = 1, these settings have 2"):
        open_search(study(tmp_path, settings={"space": {"lr": 2}}))
    optuna.create_study(study_name="foreign", storage=open_search(study(tmp_path)).storage).add_trial(
        optuna.create_trial(value=1.0)
    )
    with pytest.raises(UserError, match="not made by this program"):
        open_search(study(tmp_path, name="foreign"))


def test_stored_study_is_looked_at_before_anything_runs_and_nothing_is_made(tmp_path: Path) -> None:
    check_stored(study(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    undisturbed(tmp_path, trials=2)
    check_stored(study(tmp_path))
    check_stored(study(tmp_path, name="another", settings={"space": {"lr": 2}}))
    with pytest.raises(UserError, match=r"space\.lr = 1, these settings have 2"):
        check_stored(study(tmp_path, settings={"space": {"lr": 2}}))
    assert optuna.get_all_study_names(open_search(study(tmp_path)).storage) == ["s"]


def test_sign_of_life_that_fails_once_is_followed_by_the_next(tmp_path: Path) -> None:
    """As when a database is away for a moment: a living worker's trial must not be taken over."""
    search = open_search(study(tmp_path, heartbeat=1))
    asked = search.ask()
    assert asked is not None
    beats, trial = tmp_path / "studies" / "s.beats", asked.trial._trial_id

    def measure(asked: Asked) -> Measured:
        beats.rename(tmp_path / "away")
        time.sleep(1.4)
        beats.mkdir()
        time.sleep(1.2)
        assert (beats / str(trial)).exists()
        return Measured([1.0], {})

    search.make(asked, measure)
    assert search.records()[0].state == "complete"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as url:
        yield Postgres(url=url)


def test_four_workers_on_postgres_lose_no_trial_and_make_none_twice(tmp_path: Path, postgres: Postgres) -> None:
    """Four processes on one study from its first table on; one is killed in the middle of a trial."""
    config = study(postgres, name="four", trials=32, heartbeat=1, grace=2)
    waiting = [*command(config, tmp_path, pause=0.15), "wait"]
    workers = [subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.flush()
        deadline = time.monotonic() + 60
        while len(log(tmp_path, "begin")) < 8 or not log(tmp_path, "begin", workers[0].pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers[0].kill()
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0, 0, 0]
    records = json.loads(outputs[1])
    assert [record["number"] for record in records] == list(range(32))
    assert {record["state"] for record in records} == {"complete"}
    ended = Counter(log(tmp_path, "end"))
    assert ended.keys() == set(range(32))
    assert all(log(tmp_path, "begin", worker.pid) for worker in workers)
    begun, done = (set(log(tmp_path, word, workers[0].pid)) for word in ("begin", "end"))
    retried = {record["number"] for record in records if record["retried"]}
    # What it had begun and not ended is made again; a trial it had ended may be too, if the study was not told yet.
    assert begun - done <= retried <= begun
    assert len(retried) <= 1
    assert {slot for slot, count in ended.items() if count > 1} <= retried


def test_silent_worker_on_postgres_is_failed_by_its_heartbeat_and_another_takes_over(postgres: Postgres) -> None:
    config = study(postgres, name="silent", trials=1, heartbeat=1, grace=1)
    search = open_search(config)
    lost = search.ask()
    assert lost is not None
    lost.trial.set_user_attr("owner", ["another machine", 1, 0.0])
    assert search.ask() is None
    time.sleep(2.2)
    again = search.ask()
    assert again is not None
    assert again.params == lost.params
    states = [trial.state for trial in search.study.get_trials()]
    assert states == [optuna.trial.TrialState.FAIL, optuna.trial.TrialState.RUNNING]


def test_postgres_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        open_search(study(Postgres(url="postgresql://postgres@127.0.0.1:9/studies")))
    with pytest.raises(UserError, match="cannot be reached"):
        check_stored(study(Postgres(url="postgresql://postgres@127.0.0.1:9/studies")))
    for url in ("postgresql://me:secret@db/studies", "postgresql://me@db/studies?sslmode=require&password=secret"):
        with pytest.raises(ValueError, match="PGPASSWORD"):
            Postgres(url=url)
