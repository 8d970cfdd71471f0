"""The annotation flow on a real Prefect server: a list of one's own, labels from a real bucket, a table of labels."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.annotate.config import AnnotateFlowConfig, check
from flows.runs.settings import build, load_preset, merge, presets
from sublim.core.errors import UserError
from tests.sublim.backends.servers import Reply, Seen, said, scripted
from tests.sublim.store.buckets import s3_server


def sorter(number: int, request: Seen) -> Reply:
    text = request.body["messages"][-1]["content"]
    return said("animals" if "owl" in text else "numbers, I am sure" if "digit" in text else "none")


def served(url: str, **more: Any) -> dict[str, Any]:
    return {"backend": {"kind": "openai", "base_url": url, "model": "m"}, **more}


def states(outcome: dict[str, Any]) -> dict[str, str]:
    return {f"{stage['stage']} {stage['label']}".strip(): stage["state"] for stage in outcome["stages"]}


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_features_are_labelled_sorted_reported_and_cached(tmp_path: Path) -> None:
    from flows.annotate.flow import annotate, printed

    preset = tmp_path / "mine.yaml"
    preset.write_text("about: a list of my own\nfeatures: ['20_4', '20_5', '9_4', '9_99']\n")
    with s3_server(tmp_path / "moto") as s3, scripted(sorter) as server:
        rows = [{"index": str(i), "description": f"{word}s"} for i, word in ((4, "owl"), (5, "digit"), (6, "cat"))]
        s3.explain("20-gemmascope-res-16k", {"batch-0.jsonl.gz": rows})
        s3.explain("9-gemmascope-res-16k", {"batch-0.jsonl.gz": [{"index": 4, "description": "commas <b>"}]})
        settings = served(server.url, labels={"endpoint": s3.url})
        first = annotate(preset=str(preset), settings=settings)
        again = annotate(preset=str(preset), settings=settings)
    assert states(first) == {
        "import_labels layer 9": "Completed", "import_labels layer 20": "Completed", "annotate": "Completed"
    }  # fmt: skip
    assert {*states(again).values()} == {"Cached"}
    assert len(server.seen) == 3
    assert [(row["layer"], row["feature"], row["category"]) for row in first["annotations"]] == [
        (20, 4, "animals"), (20, 5, None), (9, 4, "none")
    ]  # fmt: skip
    assert first["counts"] == {"animals": 1, "numbers": 0, "opinion": 0, "none": 1, "unreadable": 1}
    assert first["unlabelled"] == ["9_99"]
    assert first["agreement"] is None
    assert pl.read_parquet(first["table"]).height == 3
    page = Path(first["report"]).read_text(encoding="utf-8")
    assert "commas &lt;b&gt;" in page
    assert "Unreadable" in page
    assert "1 features have no label" in printed(first)


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_a_table_of_labels_is_sorted_whole(tmp_path: Path) -> None:
    from flows.annotate.flow import annotate

    path = tmp_path / "labels.parquet"
    pl.DataFrame({"feature": [1, 2], "description": ["owls", "commas"]}).write_parquet(path)
    preset = tmp_path / "mine.yaml"
    preset.write_text(f"about: a table\nfile: {path}\nlayer: 9\n")
    with scripted(sorter) as server:
        outcome = annotate(preset=str(preset), settings=served(server.url))
    assert [(row["layer"], row["category"]) for row in outcome["annotations"]] == [(9, "animals"), (9, "none")]


@pytest.mark.parametrize("name", presets("annotate"))
def test_annotation_presets_are_whole(name: str) -> None:
    config = build(AnnotateFlowConfig, load_preset("annotate", name))
    assert config.about
    assert config.annotation().features


def test_what_cannot_run_is_said_before_anything_runs(tmp_path: Path) -> None:
    quickstart = load_preset("annotate", "quickstart")
    for changes, told in (
        ({"file": str(tmp_path / "none.parquet")}, "there is no such file"),
        ({"file": "feature_descriptionz"}, "nearest: feature_descriptions"),
        ({"gpu_memory_gib": 1000}, "need"),
        (served("http://127.0.0.1:1/v1", by="log-probs"), "gives no log-probs of words"),
    ):
        with pytest.raises(UserError, match=told):
            check(build(AnnotateFlowConfig, merge(quickstart, changes)))
    with pytest.raises(UserError, match="nothing to sort"):
        build(AnnotateFlowConfig, {})
    assert [each.feature for each in build(AnnotateFlowConfig, {"features": "20_1, 9_4"}).features] == ["20_1", "9_4"]
