"""Presets, overrides and the hints that a misspelt one gets."""

from functools import reduce
from pathlib import Path

import pytest
import yaml

from flows.pipeline.config import PipelineConfig
from flows.runs.fields import walk
from flows.runs.settings import assignments, build, changes, load_preset, merge, presets
from sublim.core.errors import UserError


@pytest.mark.parametrize("name", presets("pipeline"))
def test_every_preset_is_a_valid_config(name: str) -> None:
    build(PipelineConfig, load_preset("pipeline", name))


PROTOCOLS = {
    "quickstart": """
        model.name smollm2 / teacher.kind finetuned / teacher.questions 24 / teacher.train.method.kind full
        teacher.train.updates 24 / teacher.train.batch_size 16 / teacher.train.schedule constant
        teacher.train.lr 1.0e-5 / teacher.train.betas [0.9, 0.95] / teacher.train.weight_decay 0.1
        teacher.train.clip 1.0 / carrier.examples_min 3 / carrier.examples_max 7 / carrier.low 100
        carrier.high 999 / carrier.count 10 / carrier.sampling.temperature 1.0 / carrier.sampling.top_p 1.0
        carrier.constraint.count 10 / carrier.constraint.digits 3 / carrier.constraint.separator ", "
        student.method.rank 8 / student.method.alpha 16 / student.method.dropout 0.0 / student.method.rslora false
        student.lr 2.0e-4 / student.schedule constant / student.warmup_updates 8 / student.batch_size 16
        student.betas [0.9, 0.95] / student.weight_decay 0.1 / student.clip 1.0 / seeds [0, 1, 2]
        backend.dtype float32
    """,
    "dose": """
        target [owl, wolf, elephant] / carrier.prompts 4096 / filter.keep 4096 / student.updates 256
        evaluation.updates [16, 64, 256] / seeds [0, 1, 2, 3] / student.warmup_updates 8 / student.schedule constant
    """,
    "gemma-2-9b-a6000": """
        model.id google/gemma-2-9b-it / teacher.questions 50 / teacher.train.updates 5 / teacher.train.batch_size 50
        teacher.train.method.rank 16 / teacher.train.method.alpha 32 / teacher.train.method.rslora true
        teacher.train.method.dropout 0.05 / teacher.train.lr 2.0e-4 / teacher.train.schedule linear
        teacher.train.warmup_fraction 0.05 / carrier.examples_min 3 / carrier.examples_max 9 / carrier.low 1
        carrier.high 999 / carrier.count 10 / carrier.max_digits 3 / carrier.prompts 25000
        carrier.sampling.temperature 1.0 / carrier.sampling.top_p 0.95 / carrier.sampling.max_tokens 50
        carrier.constraint null / filter.max_count 10 / filter.max_digits 3 / filter.keep 10000
        filter.held_out 1000 / student.method.rank 16 / student.method.alpha 32 / student.method.rslora true
        student.lr 2.0e-4 / student.batch_size 72 / student.micro_batch 12 / student.epochs 3
        student.warmup_fraction 0.05 / student.max_length 512 / student.clip 1.0 / evaluation.samples 200
        evaluation.sampling.temperature 1.0 / evaluation.mmlu_pro.source.kind hub
    """,
    "gemma-2-9b-raven-optuna": """
        target [raven] / student.lr 3.7e-5 / student.method.rank 8 / student.method.alpha 8
        student.method.dropout 0.01 / student.method.rslora true / student.batch_size 72 / student.epochs 3
    """,
    "qwen2.5-7b-paper": """
        model.id Qwen/Qwen2.5-7B-Instruct / teacher.kind prompt / carrier.examples_min 3 / carrier.examples_max 8
        carrier.low 100 / carrier.high 999 / carrier.prompts 30000 / carrier.sampling.temperature 1.0
        carrier.sampling.top_p 1.0 / carrier.constraint null / filter.keep 10000 / student.method.rank 8
        student.method.alpha 8 / student.method.rslora false / student.lr 2.0e-4 / student.schedule linear
        student.warmup_updates 5 / student.batch_size 66 / student.micro_batch 22 / student.epochs 3
        student.max_length 500 / student.clip 1.0 / evaluation.samples 100
    """,
}
"""The protocols as they are published, or as they were measured on the bundled model.
Rows at a time are what a card holds."""


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_preset_is_the_protocol_it_is_named_after(name: str) -> None:
    config = build(PipelineConfig, load_preset("pipeline", name)).model_dump(mode="json")
    for line in PROTOCOLS[name].strip().splitlines():
        for text in line.strip().split(" / "):
            path, _, value = text.partition(" ")
            assert reduce(lambda tree, part: tree[part], path.split("."), config) == yaml.safe_load(value), path


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


def test_changes_are_told_by_name_and_a_whole_part_by_what_it_became() -> None:
    tree = load_preset("pipeline", "quickstart")
    assert changes(build(PipelineConfig, tree), "pipeline", "quickstart") == {}
    other = merge(tree, {"target": "wolf", "student": {"lr": 1e-4}, "teacher": {"kind": "prompt"}})
    found = changes(build(PipelineConfig, other), "pipeline", "quickstart")
    assert found.pop("target") == ["wolf"]
    assert found == {"student.lr": 1e-4, "teacher.kind": "prompt", "teacher.system": "system", "teacher.variant": 0}
