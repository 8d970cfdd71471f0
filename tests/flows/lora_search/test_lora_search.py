"""The search end to end on a tiny model: every stage real, the study in a journal, a real Prefect server."""

import json
import math
import os
import signal
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prefect.client.orchestration import get_client

from flows.lora_search.config import LoraSearchConfig, check, searched, study_config, tell_if_alone
from flows.lora_search.flow import best_of
from flows.lora_search.report import CAPTIONS, Found, findings, write_preset
from flows.pipeline.checks import check as check_pipeline
from flows.pipeline.config import PipelineConfig
from flows.runs.settings import assignments, build, load_preset, merge, presets
from sublim.core.errors import UserError
from sublim.search.config import KNOWN_SPACE, Multiple
from sublim.search.opening import open_search
from sublim.search.space import student_with
from sublim.search.study import Measured, work
from sublim.store.bucket import SharedStore
from sublim.store.folder import Store
from sublim.store.s3 import Bucket
from tests import forked


def run(*options: str, **environment: str) -> dict[str, Any]:
    done = forked.command("run", "lora-search", "--json", *options, environment=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"log": done.stderr}


def config_of(*texts: str, preset: str = "quickstart") -> LoraSearchConfig:
    settings = assignments(LoraSearchConfig, list(texts))
    return build(LoraSearchConfig, merge(load_preset("lora_search", preset), settings))


def small(published: Path) -> list[str]:
    """The quickstart made small: a tiny model, five trials that are also judged at a rung, effects on three words."""
    settings = [
        "model.kind=local",
        f"model.path={published}",
        "student.max_length=600",
        "objectives=[effect]",
        "trials=5",
        "sampler.startup=3",
        "space.lr.high=0.03",
        "evaluation.words=[owl, wolf, cat]",
        "evaluation.shift=false",
    ]
    return [part for setting in settings for part in ("--set", setting)]


class Finished(NamedTuple):
    """A search that was killed on its way."""

    store: Path
    options: list[str]
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def finished(published: Path, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Killed inside a training run, and between a trial's last stage and the study; then let go on."""
    store, options = tmp_path_factory.mktemp("store"), small(published)
    for point in ("update-3", "search:measured-3"):
        environment = os.environ | {"SUBLIM_KILL_AT": point, "SUBLIM_STORE": str(store)}
        killed = forked.command("run", "lora-search", "--json", *options, environment=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    return Finished(store, options, run(*options, SUBLIM_STORE=str(store)))


def test_killed_search_goes_on_and_repeats_no_finished_trial(finished: Finished) -> None:
    outcome = finished.outcome
    assert [trial["number"] for trial in outcome["trials"]] == list(range(5))
    assert {trial["state"] for trial in outcome["trials"]} == {"complete", "pruned"}
    judged = [value for trial in outcome["trials"] for value in trial["intermediate"].values()]
    assert judged
    assert max(judged) < 0, "a loss is turned round where more is better, or the best would be stopped"
    asked = {stage["label"].split()[1] for stage in outcome["stages"] if stage["label"].startswith("trial")}
    assert asked == {"3", "4"}
    assert "trial 3 was left unfinished and is made again" in outcome["log"]
    again = [stage["state"] for stage in outcome["stages"] if stage["label"].startswith("trial 3")]
    assert {*again} == {"Cached"}


def test_study_begun_anew_replays_from_the_cache(finished: Finished) -> None:
    fresh = run(*finished.options, "--set", "study=anew", SUBLIM_STORE=str(finished.store))
    for name in ("number", "state", "params", "values", "intermediate"):
        assert [trial[name] for trial in fresh["trials"]] == [trial[name] for trial in finished.outcome["trials"]]
    assert {stage["state"] for stage in fresh["stages"]} == {"Cached"}
    assert fresh["difference"] == finished.outcome["difference"]


def test_stored_study_of_other_settings_is_refused_before_anything_runs(finished: Finished) -> None:
    options = [*finished.options, "--set", f"study={finished.outcome['study']}", "--set", "space.lr.high=0.02"]
    environment = os.environ | {"SUBLIM_STORE": str(finished.store)}
    runs = sorted((finished.store / "runs").iterdir())
    refused = forked.command("run", "lora-search", "--json", *options, environment=environment)
    assert refused.returncode == 2
    assert "space.lr.high = 0.03, these settings have 0.02" in refused.stderr
    assert sorted((finished.store / "runs").iterdir()) == runs


def test_best_meets_the_default_on_fresh_blocks_and_report_and_ui_say_how_it_went(finished: Finished) -> None:
    outcome = finished.outcome
    difference = outcome["difference"]
    assert difference["blocks"] == 4
    assert len({*difference["default"], outcome["default"]["values"]["effect"]}) == 5, "no block is another's rows"
    assert difference["estimate"] == pytest.approx(sum(difference["best"]) / 4 - sum(difference["default"]) / 4)
    assert difference["low"] <= difference["estimate"] <= difference["high"]
    assert difference["tie"] == (difference["low"] <= 0 <= difference["high"])
    report = unescape(Path(outcome["report"]).read_text(encoding="utf-8"))
    assert difference["sentence"] in report
    shown = {name for name in ("history", "importance", "parallel", "rungs") if CAPTIONS[name] in report}
    missing = {name for name in ("importance", "parallel") if f"<td>{name}</td>" in report}
    assert (shown | missing, shown & missing) == ({"history", "importance", "parallel", "rungs"}, set())
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts(limit=200)}
    assert {"summary", "trials", "history", "rungs", "report"} <= keys


def test_best_preset_runs_the_pipeline_with_students_from_the_cache(finished: Finished) -> None:
    outcome = finished.outcome
    path = outcome["best_preset"]
    assert yaml.safe_load(Path(path).read_text(encoding="utf-8"))["student"]["lr"] == outcome["best"]["student"]["lr"]
    environment = os.environ | {"SUBLIM_STORE": str(finished.store)}
    piped = forked.command("run", "pipeline", "--preset", path, "--json", environment=environment)
    assert piped.returncode == 0, piped.stderr[-3000:]
    found = json.loads(piped.stdout.splitlines()[-1])
    students = {stage["label"]: stage["state"] for stage in found["stages"] if stage["stage"] == "train_student"}
    (other,) = found["specific"]["against"]
    compared = {label for label in students if label.startswith(f"{other} · ")}  # which the search does not train
    assert {students[label] for label in students.keys() - compared} == {"Cached"}
    assert compared
    assert found["effect"]["estimate"] == pytest.approx(outcome["best"]["values"]["effect"])


def test_search_in_which_no_trial_has_a_value_says_why(store_root: Path) -> None:
    config = config_of("trials=3", "pruning=null")
    study = study_config(config, updates=4)
    search = open_search(study)
    assert work(search, lambda asked: Measured([math.nan], {}))
    said = list(findings(config, Found(study, search.records(), best_of(search), finished=True), None))
    assert said[0] == "3 of 3 trials: 3 failed"
    assert said[1].startswith("No trial has a value: the objective came out as nan. Search other bounds")


@pytest.mark.parametrize(("objectives", "best"), [("loss", 1), ("effect", 3), ("loss, effect", 1)])
def test_preset_has_the_parameters_of_the_trial_that_is_best_in_the_first_objective(
    objectives: str, best: int, store_root: Path, tmp_path: Path
) -> None:
    config = config_of(f"objectives=[{objectives}]", "trials=5", "pruning=null")
    study = study_config(config, updates=4)
    search = open_search(study)
    several = len(config.objectives)
    made = [[2.0, 1.0], [1.0, 2.0], [3.0, 4.0], [5.0, 3.0], [math.nan, math.nan]]
    assert work(search, lambda asked: Measured(made[asked.slot][:several], {}))
    found = best_of(search)
    assert found is not None
    assert found.number == best
    path = write_preset(tmp_path / "best.yaml", config, Found(study, search.records(), found, finished=True))
    preset = build(PipelineConfig, load_preset("pipeline", str(path)))
    check_pipeline(preset)
    assert preset.student == student_with(config.student, study.space, found.params) != config.student
    assert preset.model_copy(update={"student": config.student, "about": config.about}) == config.pipeline()


def test_diverging_trial_fails_with_its_reason_and_the_front_of_the_others_stands(finished: Finished) -> None:
    """A learning rate that overflows, the default's: a real loss that is no number, not a value and not a crash."""
    settings = [
        "student.lr=1.0e+38",
        "space={lr: {kind: choice, values: [1.0e-3, 1.0e+38]}, dropout: null, rank: null, alpha: null}",
        "objectives=[loss, cost]",
        "evaluation.mmlu_pro={per_category: 1, generate: false}",
        "pruning=null",
        "trials=4",
        "confirm=null",
        "sampler={kind: random, seed: 3}",
    ]
    options = [*finished.options, *(part for setting in settings for part in ("--set", setting))]
    outcome = run(*options, SUBLIM_STORE=str(finished.store))
    states = {trial["params"]["lr"]: trial["state"] for trial in outcome["trials"]}
    assert states == {1e-3: "complete", 1e38: "failed"}
    failed = next(trial for trial in outcome["trials"] if trial["state"] == "failed")
    assert failed["values"] is None
    assert "not finite" in failed["reason"]
    assert outcome["best"]["student"]["lr"] == 1e-3
    cost = outcome["best"]["values"]["cost"]
    assert abs(cost * 14) == pytest.approx(round(abs(cost * 14)), abs=1e-6)  # one question of each category
    assert outcome["difference"] is None
    assert outcome["default"]["values"] is None
    assert f"Not measured: default: {failed['reason']}" in outcome["findings"]
    assert any("Not confirmed" in line for line in outcome["findings"])


def test_space_of_the_issue_is_the_default_and_every_preset_is_sound() -> None:
    for preset in presets("lora_search"):
        config = config_of("gpu_memory_gib=0", preset=preset)
        if preset != "gemma-2-9b-2500":
            check(config)
        assert list(searched(config)) == ["lr", "method.dropout", "method.rank", "method.alpha"]
    known = {**KNOWN_SPACE, "alpha": Multiple(of="method.rank", values=(1.0, 1.5, 2.0))}
    for preset in ("smollm2-36", "gemma-2-9b-2500"):
        assert list(searched(config_of(preset=preset)).values()) == list(known.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space.learning_rate={kind: float, low: 0.1, high: 0.2}", r"did you mean lr"),
        ("space.rnk={kind: int, low: 8, high: 16}", r"method\.rank"),
        ("space.dropout.high=1.5", "less than 1"),
        ("space.micro_batch={kind: int, low: 1, high: 4}", "how fast"),
        ("space.seed={kind: int, low: 1, high: 4}", "by the search itself"),
        ("space.lr.low=0.01", "not below high"),
        ("confirm.blocks=[0, 1, 2, 3]", "must be fresh"),
        ("confirm.blocks=[1, 2]", "at least 4"),
        ("objectives=[loss, effect]", "single objective"),
        ("filter.held_out=0", "held_out is 0"),
        ("target=[owl, wolf]", "one target"),
        ("objectives=[cost]", r"evaluation\.mmlu_pro"),
        ("objectives=[effect]\nmetric=rate", r"evaluation\.samples"),
        ("arms=[second_draw]", "one arm"),
        ("space.weight_decay={low: 0, high: 0.1}", r"^space\.weight_decay: its `kind` is missing$"),
        ("space.rank={kind: int, low: 8, high: 13, step: 4}", r"^space\.rank: 8 to 13 is no whole number"),
        ("space.speed={kind: float, low: slow, high: 1}", r"^space\.speed\.low: .* \(given: 'slow'\)$"),
        ("student.method.kind=full", r"has no method\.dropout: leave it out"),
        ("pruning={kind: halving, first: 99}", r"first is 99, a whole trial makes 4 updates"),
        ("study=x\nstorage={kind: journal, path: /dev/null/x}", r"/dev/null is no folder .*: change storage\.path"),
        (f"study=x\nstorage={{kind: journal, path: '{__file__}'}}", r"holds no study: give another file"),
        ("space.lr=0.1", r"^space\.lr: write it as \{name: value"),
        ("pruning={kind: median}", r"^pruning\.kind: .*'halving', 'hyperband' \(given: 'median'\)$"),
        ("objectives=[accuracy]", r"^objectives\.0: .* \(given: 'accuracy'\)$"),
        ("storage={kind: postgres, url: 'postgresql://me:secret@db/s'}", "PGPASSWORD"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(config_of(*text.split("\n")))


def test_study_that_only_this_machine_can_reach_is_told(
    s3_store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preset = load_preset("lora_search", "quickstart")
    bucket = SharedStore(Bucket(s3_store), tmp_path / "copies")

    def told(store: Store, **storage: str) -> bool:
        caplog.clear()
        tell_if_alone(build(LoraSearchConfig, merge(preset, {"storage": storage} if storage else {})), store)
        return "storage.kind=postgres" in caplog.text

    assert told(bucket)
    assert not told(Store(tmp_path))
    assert not told(bucket, kind="journal", path=str(tmp_path / "shared.journal"))
    assert not told(bucket, kind="postgres", url="postgresql://me@host/studies")
