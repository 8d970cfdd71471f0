import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from sublim.core.digest import digest
from sublim.core.errors import UserError
from sublim.training.checkpoints import checkpoint
from sublim.training.config import FullWeights, Lora, TrainConfig


def test_importing_the_config_imports_no_torch():
    script = "import sys, sublim.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_micro_batch_and_checkpoint_interval_are_no_part_of_the_identity():
    plain = TrainConfig(updates=4)
    assert digest(plain.model_copy(update={"micro_batch": 2, "checkpoint_every": 3})) == digest(plain)
    assert digest(plain.model_copy(update={"order_seed": 3})) != digest(plain)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"updates": 3, "epochs": 1},
        {"updates": 3, "keep": (4,)},
        {"updates": 3, "keep": (0,)},
        {"updates": 3, "warmup_updates": 1, "warmup_fraction": 0.1},
    ],
)
def test_contradictions_are_refused(fields: dict[str, object]):
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(fields)


def test_lora_scale_is_alpha_over_rank_unless_rank_stabilised():
    assert Lora(rank=8, alpha=8).scale == 1.0
    assert Lora(rank=8, alpha=8, rslora=True).scale == pytest.approx(2.83, abs=0.01)
    assert Lora(rank=16, alpha=32, rslora=True).scale == 8.0


@pytest.mark.parametrize(("halved", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_resolving_leaves_no_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch, halved: bool, dtype: str):
    monkeypatch.setattr("sublim.training.config.gpu", lambda: None)
    monkeypatch.setattr("sublim.training.config.cpu_multiplies_bfloat16", lambda: halved)
    config = TrainConfig(updates=1).resolved()
    assert (config.dtype, config.attention) == (dtype, "sdpa")
    assert isinstance(config.method, Lora)
    assert config.method.frozen_base == ("auto" if halved else "float32")


def test_method_is_told_by_its_kind():
    assert TrainConfig.model_validate({"updates": 1, "method": {"kind": "full"}}).method == FullWeights()


def test_checkpoint_finds_kept_updates(tmp_path: Path):
    for update in (2, 16, 4):
        (tmp_path / f"update-{update:06d}").mkdir()
    assert checkpoint(tmp_path).name == "update-000016"
    assert checkpoint(tmp_path, 4).name == "update-000004"
    with pytest.raises(UserError, match=r"only after \[2, 4, 16\]"):
        checkpoint(tmp_path, 3)
