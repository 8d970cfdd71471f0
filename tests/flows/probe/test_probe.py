"""The probe flow end to end on a tiny model and a real Prefect server."""

from pathlib import Path

import polars as pl
import pytest

from flows.probe.flow import check, load_config, printed, probe
from flows.runs.settings import presets
from sublim.core.errors import UserError


def small(published: Path) -> dict[str, object]:
    return {
        "study": {
            "model": {"kind": "local", "path": str(published)},
            "carrier": {"prompts": 12, "sampling": {"n": 2}},
            "filter": {"keep": 24},
            "teacher": {"train": {"updates": 2}},
        },
        "probes": {"seeds": [0, 1], "fit": {"kind": "adam", "epochs": 2}},
    }


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_the_flow_reports_every_layer_and_is_cached(published: Path) -> None:
    first = probe(preset="quickstart", target="owl,wolf", settings=small(published))
    assert {stage["state"] for stage in first["stages"]} == {"Completed"}
    promised = {"layer", "target", "accuracy", "auc", "low", "high"}
    assert all(promised <= row.keys() for row in first["probes"])
    found = {(row["target"], row["layer"]) for row in first["probes"]}
    assert found == {(target, layer) for target in ("owl", "wolf", "multiclass") for layer in (-1, 0, 1)}
    # Two of twelve prompts are tested by each seed, with both answers; were each answer a prompt, five of 24 would be.
    assert all(row["prompts"] <= 4 for row in first["probes"])
    page = Path(first["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 1
    assert "shuffled" in page
    assert len(pl.read_csv(Path(first["report"]).with_name("probes.csv"))) == 9 * 2 * 2
    assert "owl: accuracy" in printed(first)
    second = probe(preset="quickstart", target="owl,wolf", settings={**small(published), "layers": [1]})
    states = {stage["stage"]: stage["state"] for stage in second["stages"]}
    assert states["generate_numbers"] == states["train_teacher"] == "Cached"
    assert states["fit_probes"] == "Completed"
    with pytest.raises(UserError, match="no layer 7"):
        probe(preset="quickstart", settings={**small(published), "layers": [7]})


def test_targets_and_tokens_that_cannot_be_are_refused_in_one_line() -> None:
    for target, settings, told in (
        ("owl,owl", None, "named twice"),
        (None, {"probes": {"read_at": "all"}}, "one vector per row"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            check(load_config("quickstart", target, settings))
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("store_root")
@pytest.mark.parametrize("preset", presets("probe"))
def test_presets_are_whole(preset: str) -> None:
    config = load_config(preset, "owl", None)
    assert config.pipeline.target == ("owl",)
    if not config.gpu_memory_gib:
        check(config)


def test_the_quickstart_s_lists_are_the_pipeline_s() -> None:
    """With other settings the pipeline's stages would be no hits here."""
    from flows.pipeline.flow import load_config as load_pipeline

    ours, theirs = load_config("quickstart", None, None).study, load_pipeline("quickstart", None, None)
    assert ours.identity() == theirs.identity()
