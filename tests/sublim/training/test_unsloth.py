"""The trainer unsloth without a GPU: what it refuses, and how the events of its process are followed."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from sublim.core.errors import UserError
from sublim.core.hardware import Gpu
from sublim.core.progress import listening
from sublim.files.jsonl import write_jsonl
from sublim.training import config as training
from sublim.training import train as training_stage
from sublim.training import unsloth
from sublim.training.config import FullWeights, TrainConfig


def test_refuses_at_once_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = TrainConfig(trainer="unsloth", updates=1)
    nowhere = tmp_path / "nowhere"
    monkeypatch.setattr(training, "gpu", lambda: None)
    with pytest.raises(UserError, match="needs an NVIDIA GPU; or set trainer to trl"):
        training_stage.train(tmp_path, config, scratch=tmp_path, base=nowhere, data=nowhere)
    monkeypatch.setattr(training, "gpu", lambda: Gpu("Tesla P100", 2**34, (6, 0)))
    assert training.no_unsloth() == "it needs compute capability 7.0, Tesla P100 has 6.0"
    monkeypatch.setattr(training, "gpu", lambda: Gpu("NVIDIA RTX A6000", 48 * 2**30, (8, 6)))
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    assert "pip install -e '.[gpu]' -c constraints.txt" in str(training.no_unsloth())


def test_full_weights_are_refused_with_the_config():
    with pytest.raises(ValidationError, match="unsloth trains adapters only here"):
        TrainConfig(trainer="unsloth", method=FullWeights(), updates=1)


def test_what_its_process_tells_is_told_on():
    steps = list[tuple[str, int, int]]()
    told = [{"progress": ["other", 0, 9]}, {"progress": ["training", 0, 3]}, {"progress": ["training", 2, 3]}]
    with listening(lambda *step: steps.append(step)):
        notes = unsloth.followed(json.dumps(event) for event in [*told, {"notes": {"rows": 3}}])
    assert notes == {"rows": 3}
    assert steps[-1] == ("training", 2, 3)
    assert unsloth.followed([]) is None
    with pytest.raises(UserError, match="lower micro_batch"):
        unsloth.followed([json.dumps({"refused": "lower micro_batch"})])
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        unsloth.followed([json.dumps({"failed": "ZeroDivisionError"})])


def test_the_log_has_its_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    script, records = tmp_path / "python", [{"update": 1, "loss": 2.5}, {"update": 2, "loss": 1.25}]
    write_jsonl(tmp_path / "training.jsonl", records)
    notes = json.dumps({"notes": {"rows": 3}})
    script.write_text(
        f"#!{sys.executable}\nimport os, sys\nsys.stdin.read()\nos.write(int(sys.argv[3]), b'{notes}\\n')\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(training, "gpu", lambda: Gpu("NVIDIA RTX A6000", 48 * 2**30, (8, 6)))
    monkeypatch.setattr(training, "find_spec", lambda name: True)
    config = TrainConfig(trainer="unsloth", updates=2)
    with caplog.at_level("INFO"):
        assert training_stage.train(tmp_path, config, scratch=tmp_path, base=tmp_path, data=tmp_path) == {"rows": 3}
    assert "trained 2 updates, loss 2.500 to 1.250" in caplog.text


def test_its_process_is_told_to_leave_trls_trainers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told, script = tmp_path / "told", tmp_path / "python"
    script.write_text(f"#!/bin/sh\ncat > {tmp_path}/job\nenv > {told}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(training, "gpu", lambda: Gpu("NVIDIA RTX A6000", 48 * 2**30, (8, 6)))
    monkeypatch.setattr(training, "find_spec", lambda name: True)
    config = TrainConfig(trainer="unsloth", updates=1)
    with pytest.raises(RuntimeError, match="ended with code 0 and without a result"):
        training_stage.train(tmp_path, config, scratch=tmp_path, base=tmp_path, data=tmp_path)
    assert {"UNSLOTH_ALLOW_CPU=1", "HF_HUB_OFFLINE=1"} <= {*told.read_text().splitlines()}
    assert json.loads((tmp_path / "job").read_text())["config"]["updates"] == 1


def test_a_trainer_that_was_rewritten_all_the_same_is_refused(monkeypatch: pytest.MonkeyPatch):
    process = "sublim.training.unsloth_process"
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    monkeypatch.delitem(sys.modules, process, raising=False)
    from sublim.training import unsloth_process

    try:
        unsloth_process.check_trainer()
        monkeypatch.setattr(unsloth_process, "Trainer", type("Trainer", (), {"__module__": "UnslothTrainer"}))
        with pytest.raises(RuntimeError, match="put UnslothTrainer in the place of transformers' Trainer"):
            unsloth_process.check_trainer()
    finally:
        del sys.modules[process]
