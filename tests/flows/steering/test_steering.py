"""The steering flow end to end on a tiny model and a real Prefect server, its mechanism included."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline.teacher_config import SteeringTeacher
from flows.runs.settings import build, load_preset, presets
from flows.steering.config import SteeringFlowConfig
from flows.steering.findings import Shown, findings, tables
from flows.steering.plan import check
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.steering.alignment_config import ALONE
from sublim.steering.dose_curve_config import SteeredPoint
from sublim.store.opening import open_store


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
    from transformers import AutoConfig

    from flows.pipeline.teachers import vectors_of
    from flows.steering.flow import steering
    from flows.steering.report import printed
    from sublim.residual.vectors import load_edits, read_vectors

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
    for measure, at in (("alignment_paper", "mean_prompt"), ("alignment_above_control", "mean_answer")):
        rows = found[measure]
        assert [row["name"] for row in rows] == [f"resid_post/{layer}/{at}" for layer in (0, 1, 0, 1)]
        assert {(row["above_others"], row["unique"]) for row in rows} == {(None, None)}
        assert {row["reason"] for row in rows} == {ALONE}
    assert [row["own"] for row in found["alignment_above_control"]] == [row["difference"] for row in found["eas"]]
    assert {(row["measure"], row["own_minus_others"]) for row in outcome["alignment_matrices"]} == {
        ("alignment_paper", None), ("alignment_above_control", None)
    }  # fmt: skip
    assert [[p["layers"] for p in own] for own in found["sufficiency"]] == [[[0], [1]]]
    assert [[p["random"] for p in own] for own in found["replaced"]] == [[10, 10]]
    assert all(p["estimate"] != 0 for name in ("sufficiency", "replaced") for p in found[name][0])
    [necessity] = found["necessity"]
    assert {row["direction"] for row in necessity} == {
        *("v_student", "v_control", "components"),
        *(f"component-{i}" for i in range(3)), *(f"random-{i}" for i in range(10)),
    }  # fmt: skip
    assert [row["estimate"] for row in necessity if row["direction"] == "v_student"] == [
        p["estimate"] for p in found["replaced"][0]
    ]
    assert all(0 <= row["share"] <= 1 for row in necessity)
    page = Path(outcome["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 5
    assert "missing: random vectors" not in page
    for p in true:
        assert p["rate_reason"] if p["rate"] is None else p["rate_low"] <= p["rate"] <= p["rate_high"]
    assert all(p["mmlu_pro_low"] < p["mmlu_pro"] < p["mmlu_pro_high"] for p in true)
    beside = {path.name for path in (Path(outcome["report"]).parent / "figures").iterdir()}
    assert beside == {
        f"owl-{name}" for name in (
            *("curve.svg", "sense.svg", "alignment.svg", "teachers.svg", "layers.svg"),
            *("curve.csv", "alignment.csv", "layers.csv", "necessity.csv", "alignment-paper.csv",
            "alignment-above-control.csv"),
        )
    }  # fmt: skip
    assert "at answer tokens) is largest at layer" in printed(outcome)
    assert ALONE in printed(outcome)
    # Its vectors, by their key, are what a teacher of the pipeline is steered by.
    store, keys = open_store(), {stage["stage"]: stage["key"] for stage in outcome["stages"]}
    base = store.search(keys["prepare_model"]).artifact
    teacher = SteeringTeacher(vectors=keys["difference_vectors"][:12], vector="resid_post/1/mean_answer")
    vectors, folder = store.payload(vectors_of(teacher, base)), store.payload(base)
    [edit] = load_edits(teacher.steering("owl"), read_vectors(vectors), AutoConfig.from_pretrained(folder), folder)
    assert float(edit.step.norm()) == pytest.approx(edit.note.residual_norm)
    json.dumps(outcome)
    again = steering(preset="quickstart", target="owl", settings=settings)
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert again["curve"] == points


@pytest.mark.usefixtures("prefect_server", "store_root")
def test_several_teachers_stand_beside_each_other_in_alignment_and_necessity(published: Path) -> None:
    from flows.steering.flow import steering

    grid = {"layers": [1], "together": [], "strengths": [1], "random": 1, "random_strengths": [1]}
    mechanism = {"layers": [1], "rows": 8, "sufficiency": False}
    settings = small(published, mode={"kind": "trained", "updates": 1}, grid=grid, mechanism=mechanism)
    outcome = steering(preset="quickstart", target="owl,wolf", settings=settings)
    for each, other in zip(outcome["targets"], ("wolf", "owl"), strict=True):
        found = each["mechanism"]
        for measure in ("alignment_paper", "alignment_above_control"):
            row = found[measure][-1]
            assert [*row["others"]] == [*row["teachers"]] == [other]
            assert row["above_others"]["mean"] == pytest.approx(row["own"]["mean"] - row["others"][other]["mean"])
            assert 0 < row["unique_share"] <= 1
            assert row["reason"] is None
        assert f"teacher-{other}" in {row["direction"] for row in found["necessity"][0]}
    paper, above = outcome["alignment_matrices"]
    assert (paper["measure"], above["measure"]) == ("alignment_paper", "alignment_above_control")
    for matrix in (paper, above):
        assert (matrix["students"], matrix["teachers"]) == (["owl", "wolf"], ["owl", "wolf"])
        rows = [each["mechanism"][matrix["measure"]][-1] for each in outcome["targets"]]
        assert matrix["cosines"][0] == [rows[0]["own"]["mean"], rows[0]["others"]["wolf"]["mean"]]
        assert matrix["cosines"][1] == [rows[1]["others"]["owl"]["mean"], rows[1]["own"]["mean"]]
    page = Path(outcome["report"]).read_text(encoding="utf-8")
    assert "alignment_above_control: students by teachers" in page
    assert "with v_unique, the part of owl" in page


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "store_root")
def test_new_students_learn_from_a_teacher_that_writes_without_its_vector(published: Path) -> None:
    from flows.steering.flow import steering

    mechanism = {"layers": [1], "rows": 8, "rewrite": [1], "sufficiency": False, "replace": False}
    outcome = steering(preset="quickstart", target="owl", settings=small(published, mechanism=mechanism))
    rewritten = outcome["mechanism"]["rewritten"]
    assert [each["random"] for each in rewritten] == [False, *[True] * 10]
    assert len({each["student"] for each in rewritten}) > 1
    assert len({each["control"] for each in rewritten}) == 1


def point(**fields: Any) -> dict[str, Any]:
    """A point of a curve, as it is printed."""
    known = {"layers": [0], "vectors": ["v"], "kind": "add", "scale": "raw", "position": "all", "control": False}
    numbers = {"margin": 0.5, "estimate": 0.5, "low": 0.1, "high": 0.9, "answers": 0, "readable": 0, "questions": 50}
    missing = {"rate": None, "rate_reason": "no answers were sampled", "mmlu_pro_reason": "no questions were asked"}
    return SteeredPoint.model_validate({"point": 1, "alpha": 1.0, **known, **numbers, **missing, **fields}).model_dump()


def test_what_could_not_be_computed_is_told_with_its_reason_and_never_as_zero() -> None:
    lost = {"margin": None, "estimate": None, "low": None, "high": None, "reason": "log-probs are not finite"}
    base = point(point=0, layers=[], vectors=[], kind=None, alpha=0.0, estimate=0.0, mmlu_pro_reason="all are ties")
    exam = {"mmlu_pro": 0.4, "mmlu_pro_low": 0.3, "mmlu_pro_high": 0.5, "mmlu_pro_read": 9, "mmlu_pro_reason": None}
    points = [base, point(**exam), point(alpha=2.0, estimate=0.2), point(alpha=3.0, **lost)]
    eas = {"update": 1, "layer": 0, "random": [0.1], "name": "p", "student_length": 1.0, "teacher_length": 1.0}
    cosine = {"mean": 0.5, "per_pair": [0.5], "low": None, "high": None}
    place = {"name": "p", "layer": 0, "update": 1, "random": [0.1], "above_others": None, "reason": ALONE}
    alone = {**place, "own": cosine, "others": {}, "unique": None, "unique_share": None, "teachers": {}}
    gone = {name: lost[name] for name in ("estimate", "low", "high", "reason")}
    mechanism = {
        "eas": [{**eas, "student": cosine, "control": cosine, "difference": cosine}],
        "alignment_paper": [alone],
        "alignment_above_control": [alone],
        "sufficiency": [[point(), point(layers=[1], **lost)]],
        "replaced": [[point(**lost)]],
        "necessity": [[{"layer": 0, "direction": "v_student", "share": 0.4, "cosine": 1.0, **gone}]],
        "rewritten": [
            {"layer": 0, "vector": "v", "random": False, "reason": "no weights"}
            | dict.fromkeys(("student", "control", "estimate", "low", "high"))
        ],
    }
    shown = Shown.model_validate({"target": "owl", "vectors": {}, "curve": points, "mechanism": mechanism})
    text = "\n".join(findings(shown))
    assert "layer 0: most at strength 1 (all), the largest of 2 points, 0.50 [0.10, 0.90] nats" in text
    assert "; no random vectors there; MMLU-Pro 0.400 (unsteered missing: all are ties)" in text
    assert "1 points could not be measured: log-probs are not finite" in text
    assert "adding v_student to the base (student 0): 1 layers could not be measured" in text
    assert "replacing a direction (student 0): 1 could not be measured" in text
    cells = [cell for table in tables(shown) for row in table.rows for cell in row]
    assert "missing: no answers were sampled" in cells
    assert cells.count("missing: log-probs are not finite") == 3  # of the curve, added, replaced
    assert "0.40 [0.30, 0.50] (9 read)" in cells
    assert "missing: no weights" in cells


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
        ({"grid": {"layers": [-1]}}, r"grid\.layers.*greater than or equal to 0"),
        ({"mmlu_pro": {"categories": ["alchemy"]}}, "no category 'alchemy'"),
        (
            {"mmlu_pro": {"source": {"kind": "parquet", "path": "none.parquet"}}},
            r"none\.parquet: there is no such file",
        ),
        ({"mechanism": {}, "study": {"second_draw": True}}, "a null run has no teacher's vector"),
        ({"mechanism": {}, "study": {"teacher": {"kind": "prompt"}}}, "take a teacher that is trained"),
        ({"mechanism": {}, "study": {"blocks": [0, 1]}}, "all students against one teacher"),
        ({"mechanism": {}, "study": {"student": {"method": {"kind": "full"}}}}, "an adapter on that base"),
        ({"mechanism": {}, "study": {"backend": {"kind": "vllm"}}}, r"vLLM cannot .* study\.backend\.kind=hf"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    from flows.runs.settings import merge

    with pytest.raises(UserError, match=message):
        check(build(SteeringFlowConfig, merge(load_preset("steering", "quickstart"), settings)))


def test_prompt_tokens_of_one_reader_are_refused_in_the_settings() -> None:
    from flows.runs.settings import merge

    with pytest.raises(UserError, match="both sides have the same prompts"):
        build(SteeringFlowConfig, merge(load_preset("steering", "quickstart"), {"read_at": "mean_prompt"}))


def test_a_layer_that_the_model_lacks_is_named_before_anything_runs(published: Path, store_root: Path) -> None:
    from flows.steering.flow import steering

    with pytest.raises(UserError, match="the model has no layer 5: it has 2"):
        steering.fn(
            preset="quickstart",
            settings=small(published) | {"grid": {"layers": [0, 5], "strengths": [1], "random_strengths": [1]}},
        )
    assert not store_root.exists()
