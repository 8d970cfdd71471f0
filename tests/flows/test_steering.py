"""The steering flow end to end on a tiny model and a real Prefect server, its mechanism included."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.settings import build, load_preset, presets
from flows.steering_config import SteeringFlowConfig
from flows.steering_plan import check
from sublim.errors import UserError
from sublim.hardware import gpu


def small(published: Path, **settings: Any) -> dict[str, Any]:
    """Settings that make a study small: every stage real, on the tiny model."""
    return {
        "mode": {"kind": "numbers"},
        "grid": {"layers": [0, 1], "together": [[0, 1]], "strengths": [0, 3], "random": 3, "random_strengths": [3]},
        "study": {
            "model": {"kind": "local", "path": str(published)},
            "carrier": {"prompts": 16},
            "filter": {"keep": 16},
            "teacher": {"train": {"updates": 2}},
            "student": {"updates": 3, "batch_size": 4, "warmup_updates": 1, "max_length": 600},
            "seeds": [0],
            "evaluation": {"samples": 1, "updates": [1, 3]},
        },
        **settings,
    }


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_the_steering_flow_shows_a_curve_and_the_mechanism_and_is_cached(published: Path) -> None:
    from flows.steering import printed, steering

    settings = small(published, mechanism={"layers": [0, 1], "rows": 8}, mmlu_pro={"per_category": 1})
    outcome = steering(preset="quickstart", target="owl", settings=settings)
    assert outcome["flow"] == "steering"
    assert {stage["state"] for stage in outcome["stages"]} <= {"Completed", "Cached"}  # the pipeline's own, twice
    points = outcome["curve"]
    assert {"layers", "alpha", "position", "estimate", "low", "high"} <= points[0].keys()
    true = [point for point in points if not point["control"]]
    assert [(p["layers"], p["alpha"]) for p in true] == [
        ([], 0), ([0], 0), ([1], 0), ([0, 1], 0), ([0], 3), ([1], 3), ([0, 1], 3)
    ]  # fmt: skip
    assert [p["estimate"] for p in true[:4]] == [0, 0, 0, 0]
    assert all(p["estimate"] != 0 for p in true[4:])
    assert [p["random"] for p in true] == [0, 0, 0, 0, 3, 3, 0]
    assert {p["answers"] for p in true} == {50}
    assert {p["mmlu_pro_read"] for p in true} == {14}
    assert {p["mmlu_pro_read"] for p in points if p["control"]} == {0}
    found = outcome["mechanism"]
    assert [(row["layer"], row["update"]) for row in found["eas"]] == [(0, 1), (1, 1), (0, 3), (1, 3)]
    assert [[p["layers"] for p in own] for own in found["sufficiency"]] == [[[0], [1]]]
    assert [[p["random"] for p in own] for own in found["replaced"]] == [[10, 10]]
    assert all(p["estimate"] != 0 for name in ("sufficiency", "replaced") for p in found[name][0])
    page = Path(outcome["report"]).read_text()
    assert page.count("data:image/svg+xml") == 3
    assert "alignment with the teacher is largest" in printed(outcome)
    json.dumps(outcome)
    again = steering(preset="quickstart", target="owl", settings=settings)
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert again["curve"] == points


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "store_root")
def test_new_students_learn_from_a_teacher_that_writes_without_its_vector(published: Path) -> None:
    from flows.steering import steering

    mechanism = {"layers": [1], "rows": 8, "rewrite": [1], "sufficiency": False, "replace": False}
    outcome = steering(preset="quickstart", target="owl", settings=small(published, mechanism=mechanism))
    rewritten = outcome["mechanism"]["rewritten"]
    assert [each["random"] for each in rewritten] == [False, *[True] * 10]
    assert len({each["student"] for each in rewritten}) > 1
    assert len({each["control"] for each in rewritten}) == 1


@pytest.mark.parametrize("name", presets("steering"))
def test_presets_are_whole(name: str) -> None:
    config = build(SteeringFlowConfig, load_preset("steering", name))
    assert config.about
    if config.gpu_memory_gib and gpu() is None:
        with pytest.raises(UserError, match="need a GPU"):
            check(config)
    else:
        check(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"study": {"backend": {"kind": "fake"}}}, "backend fake cannot be steered"),
        ({"mode": {"kind": "file", "path": "none.safetensors"}}, "none.safetensors is not there"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    from flows.settings import merge

    with pytest.raises(UserError, match=message):
        check(build(SteeringFlowConfig, merge(load_preset("steering", "quickstart"), settings)))


def test_prompt_tokens_of_one_reader_are_refused_in_the_settings() -> None:
    from flows.settings import merge

    with pytest.raises(UserError, match="prompt tokens do not differ"):
        build(SteeringFlowConfig, merge(load_preset("steering", "quickstart"), {"read_at": "mean_prompt"}))


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_a_layer_that_the_model_lacks_is_named(published: Path) -> None:
    from flows.steering import steering

    with pytest.raises(UserError, match="the model has no layer 5: it has 2"):
        steering(
            preset="quickstart",
            settings=small(published) | {"grid": {"layers": [0, 5], "strengths": [1], "random_strengths": [1]}},
        )
