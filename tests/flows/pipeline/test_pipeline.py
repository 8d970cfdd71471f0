"""The pipeline end to end, every stage real, on a tiny model and a real Prefect server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.__main__ import main
from sublim.files.jsonl import read_jsonl
from sublim.store.folder import Store
from tests import forked

CODE = """
import sys
from flows.__main__ import main
code = main(sys.argv[1:])
print('torch' in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def run(*options: str) -> dict[str, Any]:
    """Runs the command in this process's environment and returns its JSON."""
    done = forked.command("run", "pipeline", "--json", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"log": done.stderr}


def run_anew(*options: str) -> dict[str, Any]:
    """The same in a new interpreter, as a user does; `torch` says whether it was imported."""
    command = [sys.executable, "-c", CODE, "run", "pipeline", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"torch": done.stderr.split()[-1] == "True", "log": done.stderr}


def states(outcome: dict[str, Any]) -> dict[str, set[str]]:
    """The states of each stage's runs."""
    found: dict[str, set[str]] = {}
    for stage in outcome["stages"]:
        found.setdefault(stage["stage"], set()).add(stage["state"])
    return found


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def shared_store(module_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store for all tests here, so that each stands on the cache of the first."""
    monkeypatch.setenv("SUBLIM_STORE", str(module_store))


@pytest.mark.usefixtures("prefect_server")
class TestPipeline:
    """In this order: the first run fills the store that the others reuse."""

    def test_first_run_makes_every_stage_and_leaves_its_report(self, small: list[str], module_store: Path) -> None:
        outcome = run_anew(*small)
        assert set.union(*states(outcome).values()) == {"Completed"}
        assert outcome["effect"]["seeds"] == 2
        assert outcome["effect"]["questions"] >= 50
        assert outcome["effect"]["low"] < outcome["effect"]["estimate"] < outcome["effect"]["high"]
        report = Path(outcome["report"])
        assert "<html" in report.read_text(encoding="utf-8")
        assert [each["writer"] for each in outcome["carrier"]] == ["control", "owl teacher", "panda teacher"]
        # A tiny random model writes no list by itself.
        assert all(each["forced"] and each["valid"] == 0 and each["warnings"] for each in outcome["carrier"])
        assert "only because it was forced" in report.read_text(encoding="utf-8")
        assert json.loads((report.parent / "summary.json").read_text())["target"] == "owl"
        store = Store(module_store)
        assert {
            run["status"] for run in map(json.loads, (p.read_text() for p in store.root.glob("runs/*/run.json")))
        } == {"Completed"}

    def test_teacher_and_control_answer_the_same_prompts(self, module_store: Path) -> None:
        prompts = [
            [row["prompt"] for row in read_jsonl(path / "rows.jsonl")]
            for path in module_store.glob("generate_numbers/*/payload")
        ]
        assert len(prompts) == 3  # the owl teacher, the panda teacher that it is compared with, and the base
        assert prompts[0] == prompts[1] == prompts[2]

    def test_students_never_see_the_teachers_context(self, module_store: Path) -> None:
        for path in module_store.glob("filter_numbers/*/payload"):
            assert {row["system"] for row in read_jsonl(path / "rows.jsonl")} == {None}

    def test_second_run_is_cached_throughout_and_imports_no_torch(self, small: list[str]) -> None:
        outcome = run_anew(*small)
        assert set.union(*states(outcome).values()) == {"Cached"}
        assert not outcome["torch"]

    def test_run_only_field_reruns_nothing(self, small: list[str]) -> None:
        outcome = run(*small, "--set", "backend.batch_size=7", "--set", "student.micro_batch=2")
        assert set.union(*states(outcome).values()) == {"Cached"}

    def test_other_filter_with_equal_bytes_stops_there(self, small: list[str]) -> None:
        outcome = run(*small, "--set", "filter.max_digits=4")
        found = states(outcome)
        # The filter's rules also judge the free answers of the examination.
        assert found.pop("filter_numbers") == found.pop("examine_carrier") == {"Completed"}
        assert set.union(*found.values()) == {"Cached"}

    def test_other_filter_with_other_bytes_reruns_from_there(self, small: list[str]) -> None:
        found = states(run(*small, "--set", "filter.keep=20"))
        assert {found[stage] == {"Cached"} for stage in ("prepare_model", "train_teacher", "generate_numbers")} == {
            True
        }
        assert {"Completed"} == found["filter_numbers"] == found["train_student"] == found["compare"]

    def test_two_targets_share_the_control_and_read_both_words(self, small: list[str]) -> None:
        outcome = run(*small, "--target", "owl,otter")
        assert [each["target"] for each in outcome["targets"]] == ["owl", "otter"]
        controls = {
            stage["key"]
            for stage in outcome["stages"]
            if stage["label"].startswith("control · seed") and stage["stage"] == "train_student"
        }
        assert len(controls) == 2
        assert states(outcome)["prepare_model"] == {"Cached"}

    def test_checkpoints_give_a_dose_series(self, small: list[str]) -> None:
        outcome = run(*small, "--set", "evaluation.updates=[1, 3]")
        assert [point["updates"] for point in outcome["dose"]] == [1, 3]

    def test_blocks_become_the_units(self, small: list[str]) -> None:
        outcome = run(*small, "--set", "blocks=[0, 1]", "--set", "seeds=[0]")
        assert outcome["effect"]["units"] == 2
        assert "2 blocks" in outcome["about_units"]

    def test_prompted_teacher_writes_under_its_system_prompt(self, small: list[str], module_store: Path) -> None:
        outcome = run(
            *small, "--set", "teacher.kind=prompt", "--set", "seeds=[0]", "--set", "filter.system=You count things."
        )
        # Said also of the students, who here are trained under a prompt and asked without it.
        (mismatch,) = outcome["mismatches"]
        assert "training has the system prompt 'You count things.'" in mismatch
        report = Path(outcome["report"]).read_text(encoding="utf-8")
        assert "Training and evaluation differ" in report
        assert "Owl: quickstart with other settings" in report
        assert "filter.system &#34;You count things.&#34;" in report
        systems = {
            row["system"]
            for path in module_store.glob("generate_numbers/*/payload/rows.jsonl")
            for row in read_jsonl(path)
        }
        assert any(system and "owl" in system.lower() for system in systems)

    def test_second_draw_puts_the_base_in_the_teachers_place(self, small: list[str], module_store: Path) -> None:
        outcome = run(*small, "--set", "second_draw=true", "--set", "seeds=[0]")
        assert "train_teacher" not in states(outcome)
        answers = {
            tuple(
                row["answer"]
                for row in read_jsonl(module_store / "generate_numbers" / stage["key"][:12] / "payload/rows.jsonl")
            )
            for stage in outcome["stages"]
            if stage["stage"] == "generate_numbers"
        }
        assert len(answers) == 2

    def test_a_student_is_exported_as_a_model_that_loads_alone(
        self, module_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = [manifest.artifact for manifest in Store(module_store).manifests()]
        key = next(artifact.key for artifact in made if artifact.stage == "train_student")
        out = tmp_path / "taken" / "owl"
        assert main(["models", "export", key[:8], str(out)]) == 0
        (base,) = module_store.glob("prepare_model/*/payload")
        names = ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"]
        before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
        assert [torch.equal(before[name], after[name]) for name in names] == [False, True]
        capsys.readouterr()
        for wrong, says in (([key[:8], str(out)], "exists already"), (["bundled", "elsewhere"], "not a trained model")):
            assert main(["models", "export", *wrong]) == 2
            assert says in capsys.readouterr().err

    def test_too_few_rows_say_why_and_end_with_two(self, small: list[str]) -> None:
        options = [*small, "--set", "carrier.constraint=null", "--set", "filter.keep=24"]
        command = [sys.executable, "-m", "flows", "run", "pipeline", *options]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode == 2, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        assert "wanted" in done.stderr.splitlines()[-1]
