"""The flow sae-analysis end to end on a tiny model and a real Prefect server."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.runs.settings import build, load_preset, merge, presets
from flows.sae_analysis.config import SaeFlowConfig
from flows.sae_analysis.plan import check, check_layers, other_words
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.sae.config import SaeNote
from tests.sublim.backends.servers import Reply, Seen, said, scripted
from tests.sublim.store.buckets import s3_server


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
            "carrier": {"prompts": 8, "sampling": {"n": 2}},
            "filter": {"keep": 16},
            "teacher": {"train": {"updates": 4, "lr": 1e-2}},
            "student": {"updates": 3, "batch_size": 4, "warmup_updates": 1, "max_length": 600},
            "seeds": [0],
        },
        **settings,
    }


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_the_flow_shows_features_overlaps_and_quality_and_is_cached(published: Path, tmp_path: Path) -> None:
    from flows.sae_analysis.flow import sae_analysis
    from flows.sae_analysis.report import printed

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
        for kind in (
            *("numbers", f"against {other}", "teacher", "student 0", "student 0 minus base", "word plain", "word chat"),
        )
    }
    names = {row["first"] for row in outcome["overlaps"]} | {row["second"] for row in outcome["overlaps"]}
    assert names == {f"{target} {kind}" for target, kind in kinds if not kind.startswith("against")}
    assert len(outcome["overlaps"]) == 2 * (12 * 11 // 2)
    apart = {(row["first"], row["second"]) for row in outcome["overlaps"] if not row["common"]}
    assert ("owl student 0", "owl teacher") in apart
    assert ("owl student 0", "wolf teacher") in apart
    # Both set against the base's reading of its own rows, or against one and the same control student.
    assert not {("owl numbers", "owl teacher"), ("owl student 0", "wolf student 0")} & apart
    page = Path(outcome["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 7
    assert "features along the steering vector at resid_post-1" in page
    assert {row["layer"] for row in outcome["probes"]} == {-1, 0, 1}
    assert {row["target"] for row in outcome["probes"]} == {"owl", "wolf", "multiclass"}
    assert {row["prompts"] for row in outcome["probes"]} == {2}, "both answers to a prompt are on one side of a split"
    assert "explained variance" in printed(outcome)
    json.dumps(outcome)
    again = sae_analysis(preset="quickstart", target="owl,wolf", settings=settings)
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert again["overlaps"] == outcome["overlaps"]


def kinds(number: int, request: Seen) -> Reply:
    """Sorts by the number in the description: even ones are animals, of the others some cannot be read."""
    feature = int(request.body["messages"][-1]["content"].split("feature ")[-1].split()[0])
    return said("animals" if feature % 2 == 0 else "numbers" if feature % 3 else "I cannot say")


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_features_of_an_sae_that_names_its_place_get_their_labels_and_kinds(published: Path, tmp_path: Path) -> None:
    """From a real bucket server; sorted by a local model and by a server; features without a label stay so."""
    from flows.sae_analysis.flow import sae_analysis
    from tests.sublim.sae.test_autoencoder import FEATURES, WIDTH, made

    place = "gemma-2-9b-it/1-gemmascope-res-16k"
    made("jumprelu", width=WIDTH, neuronpedia_id=place).save_model(tmp_path / "sae")
    settings = small(published, saes={"kind": "folder", "paths": [str(tmp_path / "sae")]}, pairs=0, vectors=False)
    settings |= {"texts": [{"kind": "rows"}], "shown": 3}
    with s3_server(tmp_path / "moto") as s3, scripted(kinds) as server:
        half = range(0, FEATURES // 2)
        rows = [{"index": str(i), "description": f"feature {i} of <owls>", "scoreV1": 0.5} for i in half]
        worse = [{"index": str(i), "description": f"feature {i} worse", "scoreV1": 0.1} for i in half]
        s3.explain("1-gemmascope-res-16k", {"batch-0.jsonl.gz": rows, "batch-1.jsonl.gz": worse})
        settings["neuronpedia"] = {"endpoint": s3.url}
        local = sae_analysis(
            preset="quickstart", target="owl", settings={**settings, "annotator": {"kind": "hf", "dtype": "float32"}}
        )
        asked = {"kind": "openai", "base_url": server.url, "model": "m"}
        outcome = sae_analysis(preset="quickstart", target="owl", settings={**settings, "annotator": asked})
    for found in (local, outcome):
        lines = found["features"]
        assert all(
            line["label"] == (f"feature {line['feature']} of <owls>" if line["feature"] in half else None)
            for line in lines
        )
        shown = {
            line["feature"]
            for kind in ("numbers", "teacher", "word plain", "word chat")
            for line in [line for line in lines if line["contrast"] == kind][:3]
        }
        sorted_ones = {line["feature"] for line in lines if line["kind"] is not None}
        assert sorted_ones == shown & {*half}
        assert 0 < len(sorted_ones) < len({*half})
    assert {line["kind"] for line in local["features"]} <= {"animals", "numbers", "opinion", "none", "unreadable", None}
    assert len(server.seen) == len({line["feature"] for line in outcome["features"] if line["kind"]})
    for line in outcome["features"]:
        feature = line["feature"]
        right = "animals" if feature % 2 == 0 else "numbers" if feature % 3 else "unreadable"
        assert line["kind"] in (None, right)
    page = Path(outcome["report"]).read_text(encoding="utf-8")
    some = next(line for line in outcome["features"] if line["kind"] == "animals")
    assert f"feature {some['feature']} of &lt;owls&gt; (animals)" in page
    assert "Kinds of the labels among each contrast&#39;s 3 strongest features" in page
    states = {stage["stage"]: stage["state"] for stage in outcome["stages"]}
    assert (states["import_sae"], states["import_labels"], states["annotate"]) == ("Cached", "Cached", "Completed")


def test_a_layer_that_the_model_lacks_and_an_sae_of_another_width_are_refused_before_the_study(
    published: Path,
) -> None:
    tree = load_preset("sae_analysis", "quickstart")
    for settings, told in (
        ({"saes": {"layers": [40]}}, "no layer 40: it has 2"),
        ({"saes": {"layers": [1]}, "probes": {}, "probe_layers": [9]}, "no layer 9"),
    ):
        with pytest.raises(UserError, match=told):
            check_layers(build(SaeFlowConfig, merge(tree, settings)), [], published)
    config = build(SaeFlowConfig, merge(tree, {"saes": {"layers": [1]}}))
    shape = {"site": "resid_post", "layer": 1, "d_sae": 8, "architecture": "topk", "source": "folder", "model": "gpt2"}
    with pytest.raises(UserError, match=r"768 wide \(gpt2\)"):
        check_layers(config, [SaeNote.model_validate({**shape, "d_in": 768})], published)
    check_layers(config, [], published)


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
        ({"texts": [{"kind": "file", "path": "none.txt"}]}, r"none\.txt does not exist"),
        ({"saes": {"kind": "folder", "paths": ["nowhere"]}}, r"nowhere has no cfg\.json"),
        ({"pairs": 9}, "`pairs` must not exceed"),
        ({"neuronpedia": {}}, "no labels of SAEs that are trained here"),
        ({"annotator": {"kind": "fake"}}, "set neuronpedia too"),
        ({"target": "owl,owl"}, "named twice"),
        ({"labels": {14: "nowhere"}}, "nowhere is neither a folder nor"),
        ({"labels": {13: "nowhere"}}, "layer 13, of which there is no SAE"),
        ({"probes": {"read_at": "all"}}, "one vector per row"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    tree = merge(load_preset("sae_analysis", "quickstart"), settings)
    with pytest.raises(UserError, match=message):
        check(build(SaeFlowConfig, tree))


def test_a_word_is_set_against_words_that_are_no_targets() -> None:
    config = build(SaeFlowConfig, merge(load_preset("sae_analysis", "quickstart"), {"target": "owl,wolf"}))
    words = other_words(config, "owl")
    assert "cat" in words
    assert not {"owl", "wolf"} & {*words}
