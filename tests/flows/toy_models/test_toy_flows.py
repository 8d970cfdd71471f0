"""The toy flows end to end on a real Prefect server: what they return, what a second run takes from the cache."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.mnist.config import MnistFlowConfig
from flows.mnist.config import check as check_mnist
from flows.runs.settings import build, load_preset, presets
from flows.toy_models.config import ToyModelsConfig
from flows.toy_models.config import check as check_toy
from sublim.core.errors import UserError
from sublim.toys.mnist.config import MnistConfig
from sublim.toys.superposition import config as superposition_config

SMALL_TOY = {
    "p_active": [1.0, 0.01], "ablated": [0, 3], "auxiliary": [2], "seeds": [0, 1], "batch_size": 64, "steps": 200
}  # fmt: skip
SMALL_MNIST = {
    "models": 3, "width": 16, "noise_images": 500, "teacher_epochs": 2, "epochs": 2, "grid": {"aux": [3, 5]}
}  # fmt: skip


def states(outcome: dict[str, Any]) -> set[str]:
    return {stage["state"] for stage in outcome["stages"]}


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_the_superposition_flow_reports_and_is_cached() -> None:
    from flows.toy_models.flow import printed, toy_models

    first = toy_models(preset="quickstart", settings=SMALL_TOY)
    assert states(first) == {"Completed"}
    assert first["flow"] == "toy-models"
    table = pl.read_parquet(first["rows"])
    assert set(table["role"]) == {"init", "teacher", "student", "other_init", "other_student"}
    row = first["rebuilt"][0]
    promised = {"p_active", "feature", "norm_ratio", "cosine", "init_norm_ratio", "init_cosine", "low", "high"}
    assert promised <= row.keys()
    assert len(first["rebuilt"]) == 2 * 2 + 2 * 20
    page = Path(first["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 2 * 4
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "of 2 features rebuilt beyond the initialisation as weight decay alone leaves it (" in printed(first)
    second = toy_models(preset="quickstart", settings=SMALL_TOY | {"threads": 1, "figures": {"feature": 3}})
    assert [stage["state"] for stage in second["stages"]] == ["Cached", "Completed"]
    assert second["rebuilt"] == first["rebuilt"]


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_the_mnist_flow_runs_its_grid_and_is_cached() -> None:
    from flows.mnist.flow import mnist, printed

    first = mnist(preset="quickstart", settings=SMALL_MNIST)
    assert set(first["accuracy"]) == {"reference", "teacher", "student_aux", "student_all", "cross_aux", "cross_all"}
    assert set(first["accuracy"]["teacher"]) == {"mean", "low", "high", "models"}
    assert [cell["settings"] for cell in first["cells"]] == [{"aux": 3}, {"aux": 5}]
    assert len([stage for stage in first["stages"] if stage["stage"] == "train_mnist"]) == 2
    assert "aux 5, student_aux:" in printed(first)
    assert Path(first["report"]).read_text(encoding="utf-8").count("data:image/svg+xml") == 2
    again = mnist(preset="quickstart", settings=SMALL_MNIST | {"checkpoint_seconds": 1.0})
    assert states(again) == {"Cached"}
    wider = mnist(preset="quickstart", settings=SMALL_MNIST | {"grid": {"aux": [3, 5, 7]}})
    made = [stage for stage in wider["stages"] if stage["stage"] == "train_mnist"]
    assert [stage["state"] for stage in made] == ["Cached", "Cached", "Completed"]


@pytest.mark.parametrize("name", presets("toy_models"))
def test_toy_presets_are_whole(name: str) -> None:
    config = build(ToyModelsConfig, load_preset("toy_models", name))
    check_toy(config)
    assert config.about
    assert config.sweep().steps == 10_000


@pytest.mark.parametrize("name", presets("mnist"))
def test_mnist_presets_are_whole(name: str) -> None:
    config = build(MnistFlowConfig, load_preset("mnist", name))
    assert config.about
    assert all(type(cell) is MnistConfig for cell in config.cells())


def test_the_paper_preset_is_the_published_recipe() -> None:
    config = build(MnistFlowConfig, load_preset("mnist", "paper"))
    assert config.cells() == [MnistConfig()]
    assert (config.models, config.aux, config.width, config.depth, config.epochs) == (100, 3, 256, 2, 5)


def test_what_cannot_run_here_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        check_mnist(build(MnistFlowConfig, {"source": {"kind": "idx", "path": str(tmp_path)}}))
    with pytest.raises(UserError, match="features 0 to 19"):
        build(ToyModelsConfig, {"ablated": [25]})
    monkeypatch.setenv("PATH", "")
    assert superposition_config.compiler() is None
    with pytest.raises(UserError, match="engine=auto"):
        check_toy(build(ToyModelsConfig, {"engine": "native"}))
    with pytest.raises(UserError, match="npm client"):
        check_mnist(build(MnistFlowConfig, {"source": {"kind": "npm"}}))
