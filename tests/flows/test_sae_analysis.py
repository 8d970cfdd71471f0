"""The flow sae-analysis end to end on a tiny model and a real Prefect server."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.sae_config import SaeFlowConfig
from flows.sae_plan import check, other_words
from flows.settings import build, load_preset, merge, presets
from sublim.errors import UserError
from sublim.hardware import gpu
from sublim.prompts import load_questions


def small(published: Path, **settings: Any) -> dict[str, Any]:
    """Settings that make an analysis small: every stage real, on the tiny model."""
    return {
        "saes": {
            **{"layers": [0, 1], "features": 64, "architecture": {"kind": "topk", "k": 8}},
            **{"tokens": 2048, "batch": 64, "block": 512},
        },
        "texts": [{"kind": "chats", "chats": 12, "max_tokens": 8}, {"kind": "rows"}],
        "held_out": 0.3,
        "quality_tokens": 300,
        "rows": 16,
        "study": {
            "model": {"kind": "local", "path": str(published)},
            "carrier": {"prompts": 16},
            "filter": {"keep": 16},
            "teacher": {"train": {"updates": 4, "lr": 1e-2}},
            "student": {"updates": 3, "batch_size": 4, "warmup_updates": 1, "max_length": 600},
            "seeds": [0],
        },
        **settings,
    }


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_the_flow_shows_features_overlaps_and_quality_and_is_cached(published: Path, tmp_path: Path) -> None:
    from flows.sae_analysis import printed, sae_analysis

    labels = pl.DataFrame({"feature": range(64), "description": [f"about {i}" for i in range(64)], "chosen": True})
    labels.with_columns(pl.col("feature").cast(pl.UInt32)).write_parquet(tmp_path / "labels.parquet")
    probes = {"seeds": [0], "fit": {"kind": "adam", "epochs": 2}, "draws": 100}
    settings = small(published, labels={1: str(tmp_path)}, probes=probes)
    outcome = sae_analysis(preset="quickstart", target="owl,wolf", settings=settings)
    assert outcome["flow"] == "sae-analysis"
    assert {"explained_variance", "l0", "dead", "ce_recovered"} <= outcome["sae"].keys()
    assert [each["layer"] for each in outcome["saes"]] == [0, 1]
    assert {"layer", "feature", "effect", "p", "label"} <= outcome["features"][0].keys()
    assert {line["label"] for line in outcome["features"] if line["layer"] == 0} == {None}
    assert all(line["label"] == f"about {line['feature']}" for line in outcome["features"] if line["layer"] == 1)
    kinds = {(each["target"], each["contrast"]) for each in outcome["contrasts"]}
    assert kinds == {
        (target, kind)
        for target, other in (("owl", "wolf"), ("wolf", "owl"))
        for kind in ("numbers", f"against {other}", "teacher", "student 0", "word plain", "word chat")
    }
    names = {row["first"] for row in outcome["overlaps"]} | {row["second"] for row in outcome["overlaps"]}
    assert names == {f"{target} {kind}" for target, kind in kinds if not kind.startswith("against")}
    assert len(outcome["overlaps"]) == 2 * 10 * 9 // 2
    page = Path(outcome["report"]).read_text()
    assert page.count("data:image/svg+xml") == 7
    assert "features along the steering vector at resid_post-1" in page
    assert {row["layer"] for row in outcome["probes"]} == {-1, 0, 1}
    assert {row["target"] for row in outcome["probes"]} == {"owl", "wolf", "multiclass"}
    assert "explained variance" in printed(outcome)
    json.dumps(outcome)
    again = sae_analysis(preset="quickstart", target="owl,wolf", settings=settings)
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert again["overlaps"] == outcome["overlaps"]


@pytest.mark.parametrize("name", presets("sae_analysis"))
def test_presets_are_whole(name: str) -> None:
    config = build(SaeFlowConfig, load_preset("sae_analysis", name))
    assert config.about
    if config.gpu_memory_gib and gpu() is None:
        with pytest.raises(UserError, match="need a GPU"):
            check(config)
    else:
        check(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"study": {"backend": {"kind": "fake"}}}, "backend fake shows no stream"),
        ({"texts": [{"kind": "file", "path": "none.txt"}]}, r"none\.txt is not there"),
        ({"saes": {"kind": "folder", "paths": ["nowhere"]}}, r"nowhere has no cfg\.json"),
        ({"pairs": 9}, "`pairs` is at most"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    tree = merge(load_preset("sae_analysis", "quickstart"), settings)
    with pytest.raises(UserError, match=message):
        check(build(SaeFlowConfig, tree))


def test_a_word_is_set_against_words_that_are_no_targets() -> None:
    config = build(SaeFlowConfig, merge(load_preset("sae_analysis", "quickstart"), {"target": "owl,wolf"}))
    words = other_words(config, load_questions("animal"), "owl")
    assert "cat" in words
    assert not {"owl", "wolf"} & {*words}
