"""Evaluations end to end on tiny models and a real Prefect server, and names that stand for nothing."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.evaluate.config import EvaluateConfig, ModelUnderTest
from flows.evaluate.flow import check, evaluate, load_config, printed
from flows.evaluate.models import behind_server, check_names, short, understand
from flows.runs.settings import build, load_preset, presets
from sublim.core.errors import UserError
from sublim.inference.config import OpenAIBackend
from sublim.models.config import BundledModel, HubModel, LocalModel
from sublim.store.folder import Store
from sublim.store.manifest import Artifact, Provenance
from sublim.store.opening import open_store
from tests.tiny import tiny_model

FAST = {"backend": {"kind": "fake"}, "samples": 3}


def states(outcome: dict[str, Any]) -> set[str]:
    return {stage["state"] for stage in outcome["stages"]}


def trained(
    store: Store, base: Artifact, updates: tuple[int, ...], stage: str = "train_student", key: str = "ab" * 32
) -> Artifact:
    """A training payload in the store, as far as a name has to know it."""
    with store.draft(stage, key) as draft:
        for update in updates:
            (draft / f"payload/update-{update:06d}").mkdir()
            (draft / f"payload/update-{update:06d}/adapter_config.json").write_text("{}")
        return store.commit(
            draft,
            stage=stage,
            key=key,
            version=1,
            config={},
            inputs={"base": base.model_dump(), "data": None},
            notes={},
            provenance=Provenance(
                commit=None, dirty=None, packages={}, python="", host="", device="", started="2026-01-01", seconds=0
            ),
        )


def stored_base(store: Store) -> Artifact:
    with store.draft("prepare_model", "cd" * 32) as draft:
        (draft / "payload/config.json").write_text("{}")
        return store.commit(
            draft,
            stage="prepare_model",
            key="cd" * 32,
            version=1,
            config={},
            inputs={},
            notes={},
            provenance=Provenance(
                commit=None, dirty=None, packages={}, python="", host="", device="", started="2026-01-01", seconds=0
            ),
        )


def test_names_stand_for_bundled_folder_hub_and_store(store_root: Path, published: Path) -> None:
    store = open_store()
    base = stored_base(store)
    student = trained(store, base, (16, 64))
    soft = trained(store, base, (16,), "train_soft_student", "12" * 32)

    def of(name: str, base: str = "") -> Any:
        return understand(ModelUnderTest(model=name, base=base), store)

    assert of("bundled").base == BundledModel()
    assert of(str(published)).base == LocalModel(path=published)
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert of(f"google/gemma-2-9b-it@{commit}").base == HubModel(id="google/gemma-2-9b-it", revision=commit)
    assert of("ab" * 4).weights.key == student.key
    assert of("ab" * 4).updates == (None,)
    assert of("abababab@all").updates == (16, 64)
    assert of("abababab@64").base.stage == "prepare_model"
    assert of("12121212@all").weights.key == soft.key
    assert short("google/gemma-2-9b-it@main") == "gemma-2-9b-it"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("bundeld", "names no model: give `bundled`"),
        ("bundled:llama", "no bundled model 'llama'"),
        ("google/gemma-2-9b-it", "full commit"),
        ("abababab@17", r"no weights were kept after update 17, only after \[16, 64\]"),
        ("cdcdcdcd@16", "a base has no checkpoints"),
        ("efefefef", "sublim store ls"),
    ],
)
def test_a_name_that_stands_for_nothing_says_what_would(store_root: Path, model: str, told: str) -> None:
    store = open_store()
    trained(store, stored_base(store), (16, 64))
    with pytest.raises(UserError, match=told):
        understand(ModelUnderTest(model=model), store)


def test_an_adapters_folder_needs_its_base(store_root: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        understand(ModelUnderTest(model=str(tmp_path)), open_store())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="name the model it belongs to"):
        understand(ModelUnderTest(model=str(tmp_path)), open_store())
    assert understand(ModelUnderTest(model=str(tmp_path), base="bundled"), open_store()).base == BundledModel()


def test_two_models_of_one_name_are_refused(store_root: Path) -> None:
    config = build(EvaluateConfig, {"models": ["bundled", "bundled"]})
    with pytest.raises(UserError, match="two models are called 'bundled'"):
        check_names(config.models, open_store())


SERVER = OpenAIBackend(base_url="http://h/v1", model="org/gpt")


def test_models_behind_a_server_are_called_as_it_calls_them() -> None:
    plain, told = ModelUnderTest(model="bundled"), ModelUnderTest(model="bundled", name="told", system="You love owls.")
    assert [spec.name for spec in behind_server((plain, told), SERVER)] == ["gpt", "told"]
    with pytest.raises(UserError, match="answers as org/gpt whatever"):
        behind_server((plain, ModelUnderTest(model="elsewhere")), SERVER)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "scores no words: set samples"),
        ({"samples": 2, "mmlu_pro": {}}, "no log-probs of letters"),
        ({"samples": 2, "models": ["abababab@16"]}, "which the server would not load"),
    ],
)
def test_what_a_chat_server_cannot_be_asked_is_refused(settings: dict[str, Any], told: str, store_root: Path) -> None:
    store = open_store()
    trained(store, stored_base(store), (16,))
    with pytest.raises(UserError, match=told):
        check(build(EvaluateConfig, {"backend": SERVER.model_dump(), **settings}))


def test_an_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to ask"):
        build(EvaluateConfig, {"questions": []})


@pytest.mark.parametrize("name", presets("evaluate"))
def test_every_preset_is_whole(name: str, store_root: Path) -> None:
    config = build(EvaluateConfig, load_preset("evaluate", name))
    assert config.about
    if not config.gpu_memory_gib:
        check(config)


@pytest.mark.usefixtures("prefect_server")
def test_scores_have_intervals_counts_and_reasons_and_a_second_run_is_cached(
    store_root: Path, published: Path, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other", "qwen2", seed=5)
    models = [
        {"model": str(published), "name": "base"},
        {"model": str(other), "name": "other", "system": "You love owls."},
    ]
    outcome = evaluate(preset="quickstart", settings={**FAST, "models": models})
    rows = {(row["model"], row["metric"], row["questions"], row["word"]): row for row in outcome["scores"]}
    margin = rows["other", "margin", "animal", "owl"]
    assert margin["low"] < margin["estimate"] < margin["high"]
    assert margin["n"] == 50
    assert margin["estimate"] - rows["base", "margin", "animal", "owl"]["estimate"] == pytest.approx(2.0, abs=0.3)
    rate = rows["base", "rate", "animal", "owl"]
    assert rate["asked"] == 150
    unread = rows["base", "unreadable", "animal", ""]
    assert unread["estimate"] == pytest.approx(1 - unread["answers"] / 150)
    assert rows["base", "rate_readable", "animal", "owl"]["unit"] == "share of readable answers"
    assert rate["unit"] == "share of all answers asked"
    assert 0 <= rate["low"] < rate["high"] <= 1
    # Trees have no target among them: all their words are shown.
    assert len([key for key in rows if key[1:3] == ("margin", "tree") and key[0] == "base"]) == 12
    shift = rows["other", "tv_sampled", "animal", ""]
    assert shift["floor"] > 0
    assert ("base", "tv_logprob", "animal", "") not in rows
    letters = rows["base", "letter_logprob", "mmlu_pro", ""]
    assert 0 <= letters["low"] <= letters["estimate"] <= letters["high"] <= 1
    assert rows["base", "letter_generated", "mmlu_pro", ""]["estimate"] is None
    assert "no answer names an offered letter" in rows["base", "letter_generated", "mmlu_pro", ""]["reason"]
    assert rows["base", "letter_logprob", "mmlu_pro/law", ""]["n"] == 1
    assert rows["other", "letter_logprob_difference", "mmlu_pro", ""]["n"] == 14
    folder = Path(outcome["report"]).parent
    assert {path.suffix for path in folder.iterdir()} >= {".html", ".svg", ".csv", ".parquet"}
    assert "<h1>Evaluation of base, other</h1>" in (folder / "report.html").read_text()
    assert pl.read_parquet(folder / "scores.parquet").height == len(rows)
    assert "missing: no answer names an offered letter" in printed(outcome)
    assert json.dumps(outcome)
    again = evaluate(preset="quickstart", settings={**FAST, "models": models})
    assert states(again) == {"Cached"}
    # The prepared model by the key it got.
    key = next(stage["key"] for stage in again["stages"] if stage["stage"] == "prepare_model")
    by_key = evaluate(preset="quickstart", settings={**FAST, "models": [key[:8]], "questions": ["animal"]})
    assert {stage["state"] for stage in by_key["stages"] if stage["stage"] == "ask"} == {"Cached"}


@pytest.mark.usefixtures("prefect_server")
def test_no_samples_are_missing_and_not_zero(store_root: Path, published: Path) -> None:
    settings = {"backend": {"kind": "fake"}, "samples": 0, "models": [str(published)], "mmlu_pro": None}
    outcome = evaluate(preset="quickstart", target="owl,otter", settings=settings)
    kinds = ("rate", "rate_readable", "unreadable")
    shares = [row for row in outcome["scores"] if row["metric"] in kinds]
    assert {row["reason"] for row in shares} == {"no answers were sampled (samples = 0)"}
    rates = [row for row in outcome["scores"] if row["metric"] == "rate"]
    assert {row["estimate"] for row in rates} == {None}
    assert {row["reason"] for row in rates} == {"no answers were sampled (samples = 0)"}
    assert {row["word"] for row in rates if row["questions"] == "animal"} == {"owl", "otter"}


@pytest.mark.usefixtures("prefect_server")
def test_a_vector_steers_what_is_asked_and_nothing_else(store_root: Path, published: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"owl": torch.ones(32)}, tmp_path / "vectors.safetensors")
    vector = {"vectors": str(tmp_path / "vectors.safetensors"), "site": "resid_post", "layer": 0, "scale": "raw"}
    models = [
        {"model": str(published), "name": "base"},
        {"model": str(published), "name": "still", "steering": {**vector, "strength": 0.0}},
        {"model": str(published), "name": "pushed", "steering": {**vector, "strength": 4.0}},
    ]
    settings = {
        "models": models,
        "questions": ["animal"],
        "samples": 0,
        "backend": {"kind": "hf", "dtype": "float32", "attention": "eager"},
    }
    outcome = evaluate(preset="quickstart", settings=settings)
    rows = {(row["model"], row["metric"]): row for row in outcome["scores"] if "/" not in row["questions"]}
    assert rows["still", "margin"]["estimate"] == pytest.approx(rows["base", "margin"]["estimate"], abs=1e-5)
    assert rows["still", "tv_logprob"]["estimate"] == pytest.approx(0, abs=1e-6)
    assert rows["pushed", "tv_list"]["estimate"] > 1e-3
    assert rows["pushed", "letter_logprob"]["n"] == 14


def test_models_may_be_named_in_one_string() -> None:
    config = load_config("quickstart", None, {"models": "bundled; abcdef12@all"})
    assert [model.model for model in config.models] == ["bundled", "abcdef12@all"]
