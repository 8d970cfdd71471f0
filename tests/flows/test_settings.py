"""Presets, overrides and the hints that a misspelt one gets."""

from pathlib import Path

import pytest

from flows.fields import walk
from flows.pipeline_config import PipelineConfig
from flows.settings import assignments, build, load_preset, merge, presets
from sublim.errors import UserError


@pytest.mark.parametrize("name", presets("pipeline"))
def test_every_preset_is_a_valid_config(name: str) -> None:
    build(PipelineConfig, load_preset("pipeline", name))


def test_raven_preset_keeps_what_it_extends_and_changes_the_student() -> None:
    parent = build(PipelineConfig, load_preset("pipeline", "gemma-2-9b-a6000"))
    raven = build(PipelineConfig, load_preset("pipeline", "gemma-2-9b-raven-optuna"))
    assert raven.target == ("raven",)
    assert raven.carrier == parent.carrier
    assert raven.student.lr == 3.7e-5
    assert raven.student.method.scale == pytest.approx(2.83, abs=0.01)


def test_paper_preset_has_a_lora_scale_of_one() -> None:
    paper = build(PipelineConfig, load_preset("pipeline", "qwen2.5-7b-paper"))
    assert paper.student.method.scale == 1.0


def test_short_name_means_the_only_setting_that_ends_so() -> None:
    assert assignments(PipelineConfig, ["student.rank=32"]) == {"student": {"method": {"rank": 32}}}


def test_value_is_yaml() -> None:
    tree = assignments(PipelineConfig, ["seeds=[3, 4]", "student.lr=1e-4"])
    assert build(PipelineConfig, merge(load_preset("pipeline", "quickstart"), tree)).student.lr == 1e-4
    assert tree["seeds"] == [3, 4]


def test_another_kind_replaces_the_whole_part() -> None:
    under = {"teacher": {"kind": "finetuned", "questions": 24}}
    assert merge(under, {"teacher": {"kind": "prompt"}}) == {"teacher": {"kind": "prompt"}}


def test_same_kind_is_merged() -> None:
    under = {"student": {"method": {"kind": "lora", "rank": 8, "alpha": 16}}}
    merged = merge(under, {"student": {"method": {"rank": 32}}})
    assert merged == {"student": {"method": {"kind": "lora", "rank": 32, "alpha": 16}}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("student.rnk=3", "student.method.rank"),
        ("sudent.lr=3", "student.lr"),
        ("carrier.promts=3", "carrier.prompts"),
    ],
)
def test_unknown_setting_is_refused_with_the_nearest(text: str, expected: str) -> None:
    with pytest.raises(UserError, match="did you mean .*" + expected.replace(".", r"\.")):
        assignments(PipelineConfig, [text])


def test_unknown_key_in_a_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    tree = merge(load_preset("pipeline", "quickstart"), {"student": {"learning_rate": 1e-4, "batchsize": 3}})
    with pytest.raises(UserError, match=r"no setting 'student\.batchsize'.*student\.batch_size"):
        build(PipelineConfig, tree)


def test_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean quickstart"):
        load_preset("pipeline", "quikstart")


def test_value_out_of_bounds_names_the_setting() -> None:
    tree = merge(load_preset("pipeline", "quickstart"), {"student": {"method": {"rank": 0}}})
    with pytest.raises(UserError, match=r"student\.method\.rank: .*greater than or equal to 1 \(given: 0\)"):
        build(PipelineConfig, tree)


@pytest.mark.parametrize("target", ["two words", "owl,owl", "", "0wl"])
def test_target_that_is_not_one_word_is_refused(target: str) -> None:
    with pytest.raises(UserError):
        build(PipelineConfig, merge(load_preset("pipeline", "quickstart"), {"target": target}))


def test_every_setting_says_what_it_is() -> None:
    silent = [field.path for field in walk(PipelineConfig) if not field.meaning and not field.path.endswith(".kind")]
    assert not silent
