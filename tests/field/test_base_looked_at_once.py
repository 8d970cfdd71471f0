"""A base that would fail a run hours later, or be another model than its files say, is refused when it is prepared."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import base_needs
from flows.runs.settings import build, load_preset, merge
from sublim.bases.needs import check_base_needs
from sublim.bases.needs_config import CheckBaseConfig
from sublim.bases.prepare import prepare_model
from sublim.core.errors import UserError
from sublim.inference.config import NumberFormat
from sublim.models.config import LocalModel, PrepareModelConfig
from sublim.models.files import INDEX, SINGLE, TEMPLATE, read_json, write_json
from tests import forked
from tests.tiny import tiny_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0a" * 32 + "\nsize 4976698672\n"
UP = "model.layers.0.mlp.up_proj.weight"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("published"), "llama")


def copied(published: Path, folder: Path) -> Path:
    return shutil.copytree(published, folder / "source")


def prepared(source: Path, folder: Path) -> Path:
    out = folder / "base"
    out.mkdir()
    prepare_model(out, PrepareModelConfig(source=LocalModel(path=source)), scratch=folder)
    return out


def config(**more: Any) -> Spoil:
    """Other values in config.json."""
    return lambda folder: write_json(folder / "config.json", read_json(folder / "config.json") | more)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Other tensors in the file of the weights."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE, {"format": "pt"})

    return spoil


def text(name: str, content: str) -> Spoil:
    """A file that says something else."""
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def cut(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-100])


def renamed(name: str) -> Spoil:
    return lambda folder: (folder / SINGLE).rename(folder / name)


def sharded(folder: Path, *, keep_single: bool = False, lose: bool = False, wrong: bool = False) -> None:
    tensors = load_file(folder / SINGLE)
    placed = {name: PARTS[number % 2] for number, name in enumerate(sorted(tensors))}
    for part in PARTS[:1] if lose else PARTS:
        save_file({name: tensors[name] for name in tensors if placed[name] == part}, folder / part, {"format": "pt"})
    if wrong:
        placed[UP] = next(part for part in PARTS if part != placed[UP])
    write_json(folder / INDEX, {"metadata": {}, "weight_map": placed})
    if not keep_single:
        (folder / SINGLE).unlink()


def words(**more: Any) -> Spoil:
    """More tokens in the tokenizer, and no more rows in the embedding."""

    def spoil(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(more.pop("plain", []))
        tokenizer.add_special_tokens(more)
        tokenizer.save_pretrained(folder)

    return spoil


def no_named_tokens(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    kept = {name: value for name, value in read_json(path).items() if name not in ("eos_token", "pad_token")}
    path.write_text(json.dumps(kept), encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", TEMPLATE):
        (folder / name).unlink(missing_ok=True)


QUANTISED = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ({"quant_method": "not-known-yet"}, "not-known-yet"),
]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "weights are a git-lfs pointer": (text(SINGLE, POINTER), "git lfs pull"),
    "tokenizer is a git-lfs pointer": (text("tokenizer.json", POINTER), "git lfs pull"),
    "weights cut short": (cut, "download was interrupted"),
    "weights empty": (text(SINGLE, ""), "download was interrupted"),
    "another format": (renamed("model.Q4_K_M.gguf"), r"gguf is in another format"),
    "Mistral's own format": (renamed("consolidated.safetensors"), "another format"),
    "two sets of weights": (lambda folder: sharded(folder, keep_single=True), "two sets of weights"),
    "a shard is not there": (lambda folder: sharded(folder, lose=True), f"lacks {PARTS[1]}"),
    "index and shards differ": (lambda folder: sharded(folder, wrong=True), "places .* which lacks it"),
    "index leads out of the folder": (
        text(INDEX, json.dumps({"weight_map": {"a": "../x.safetensors"}})),
        "does not list",
    ),
    "index is a list": (text(INDEX, "[]"), "not a JSON object"),
    "an adapter beside the model": (text("adapter_config.json", "{}"), "holds an adapter"),
    "no output embedding, not tied": (weights(lambda each: each.pop("lm_head.weight")), "lack lm_head.weight"),
    "tied and yet another output embedding": (config(tie_word_embeddings=True), "tie_word_embeddings"),
    "more layers than the config says": (config(num_hidden_layers=1), "hold model.layers.1"),
    "fewer layers than the config says": (config(num_hidden_layers=3), "lack model.layers.2"),
    "biases that the config leaves out": (
        weights(lambda each: each.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})),
        "q_proj.bias, for which its config has no place",
    ),
    "another width": (config(intermediate_size=48), "has the shape"),
    "float8 weights without a word in the config": (
        weights(lambda each: each.update({UP: each[UP].to(torch.float8_e4m3fn)})),
        "quantised .*F8_E4M3",
    ),
    "int8 weights without a word in the config": (
        weights(lambda each: each.update({UP: each[UP].to(torch.int8)})),
        "quantised .*I8",
    ),
    "end token beyond the embedding": (text("generation_config.json", '{"eos_token_id": [2, 128009]}'), "128009"),
    "padding token beyond the embedding": (words(pad_token="[PAD]"), "pad_token has the id 420"),
    "words beyond the embedding": (words(plain=["owlish"]), "'owlish' has the id 420"),
    "padding beyond the embedding in the config": (config(pad_token_id=9999), "correct its config.json"),
    "config is no JSON": (text("config.json", '{"model_type": "llama",'), "is not JSON"),
    "unknown architecture": (config(model_type="llama9"), r"does not know \(llama9\)"),
    "code of its own": (config(model_type="ours", auto_map={"AutoConfig": "c.C"}), "its own code, which is not run"),
    "encoder and decoder": (config(model_type="t5", architectures=["T5ForConditionalGeneration"]), "no causal"),
    "encoder": (config(model_type="bert", architectures=["BertForMaskedLM"]), "no causal"),
    "a classifier's head": (config(architectures=["LlamaForSequenceClassification"]), "no causal"),
    "a fraction where a count should be": (config(num_key_value_heads=2.0), "cannot read the base's config.json"),
    "unknown rotary scaling": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "spiral"),
    "fewer positions than a question": (config(max_position_embeddings=16), "max_position_embeddings"),
    "no tokenizer": (no_tokenizer, "has no tokenizer"),
    "template without an end": (text(TEMPLATE, "{% for m in messages %}{{ m.content }}"), "chat template cannot"),
    "template that leaves out the question": (
        text(
            TEMPLATE,
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|eot_id|>{% endif %}{% endfor %}",
        ),
        "leaves out the content of a chat",
    ),
    **{
        f"quantised by {name}": (config(quantization_config=method), rf"quantised \({name}\)")
        for method, name in QUANTISED
    },
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_base_that_would_fail_later_is_refused_in_one_line(what: str, published: Path, tmp_path: Path) -> None:
    spoil, said = SPOILT[what]
    source = copied(published, tmp_path)
    spoil(source)
    with pytest.raises(UserError, match=said) as refused:
        prepared(source, tmp_path)
    assert "\n" not in str(refused.value)


SOUND: dict[str, Spoil] = {
    "as published": lambda folder: None,
    "in shards": sharded,
    "a pickle beside the weights": text("pytorch_model.bin", "a pickle"),
    "special tokens for pictures beyond the embedding": words(additional_special_tokens=["<picture>"]),
    "architectures left out": config(architectures=None),
    "code of its own for a known type": config(auto_map={"AutoConfig": "c.C"}),
    "a kernel named in the config": config(attn_implementation="flash_attention_2", _experts_implementation="grouped"),
    "another form of output": config(return_dict=False, output_attentions=True),
    "neither end nor padding named": no_named_tokens,
    "frequencies stored beside the weights": weights(
        lambda each: each.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    ),
    "a shape in the terms of transformers 4": config(
        rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}, torch_dtype="float16"
    ),
}


@pytest.mark.parametrize("what", SOUND)
def test_a_sound_base_is_prepared(what: str, published: Path, tmp_path: Path) -> None:
    source = copied(published, tmp_path)
    SOUND[what](source)
    base = prepared(source, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")
    wanted = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), wanted.parameters(), strict=True))


def test_nothing_is_copied_from_a_folder_that_is_refused(published: Path, tmp_path: Path) -> None:
    source = copied(published, tmp_path)
    config(quantization_config={"quant_method": "gptq"})(source)
    with pytest.raises(UserError):
        prepared(source, tmp_path)
    assert list((tmp_path / "base").iterdir()) == []


def test_a_mark_before_a_templates_text_is_not_read(published: Path, tmp_path: Path) -> None:
    source = copied(published, tmp_path)
    (source / TEMPLATE).write_bytes(b"\xef\xbb\xbf" + (source / TEMPLATE).read_bytes())
    base = prepared(source, tmp_path)
    assert (base / TEMPLATE).read_bytes() == (published / TEMPLATE).read_bytes()


MADE_SMALL: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 128, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4},
    "gemma4_text": {},
    "cwm": {},
}


@pytest.mark.parametrize("kind", MADE_SMALL)
def test_large_and_uneven_kinds_are_tried_too(kind: str) -> None:
    """Many experts, widths that differ from layer to layer, and a config that insists on its token ids."""
    from sublim.bases.dry_run import is_causal
    from sublim.bases.small import small_models

    assert is_causal(next(small_models(AutoConfig.for_model(kind, **MADE_SMALL[kind]))))


def test_a_wide_model_is_tried_without_its_width() -> None:
    """The shape of a model of 70 billion parameters takes no more memory than a small one's."""
    from sublim.bases.small import small_models

    shape = AutoConfig.for_model("llama", hidden_size=8192, num_attention_heads=64, num_key_value_heads=8)
    small = next(small_models(shape))
    assert small.num_parameters() < 20_000_000
    assert small.config.head_dim == shape.head_dim


def test_a_log_prob_that_is_no_number_is_an_unlike_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from sublim.bases import dry_run
    from sublim.bases.small import small_models

    nothing = dry_run.Answered([1, 2, 3, 4], 2, [math.nan, math.nan])
    monkeypatch.setitem(dry_run.CHECKED, "sampler", lambda *_: [nothing])
    with pytest.raises(UserError, match="the sampler computes another model"):
        dry_run.refuse_unlike(next(small_models(AutoConfig.for_model("llama"))), "llama", "sampler", "sdpa")


LATER = {
    "an adapter on layers that are not there": (
        CheckBaseConfig(target_modules=("c_attn", "q_proj")),
        "no module c_attn for an adapter: set target_modules to some of .*q_proj",
    ),
    "a system prompt longer than the model reads": (CheckBaseConfig(systems=("owl " * 2000,)), "take .* tokens"),
    "lists that the tokenizer cannot be held to": (
        CheckBaseConfig(constraint=NumberFormat(digits=4, separator=" wolf")),
        "cannot be forced",
    ),
}


@pytest.mark.parametrize("what", LATER)
def test_what_a_run_asks_of_its_base_is_tried_before_it_begins(
    what: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    needs, said = LATER[what]
    with pytest.raises(UserError, match=said) as refused:
        check_base_needs(tmp_path, needs, scratch=tmp_path, base=tiny_models["llama"])
    assert "\n" not in str(refused.value)


def test_a_base_that_can_do_what_is_asked_is_noted(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    needs = CheckBaseConfig(
        systems=("You love owls.",), constraint=NumberFormat(count=3), target_modules=("q_proj", "down_proj")
    )
    check_base_needs(tmp_path, needs, scratch=tmp_path, base=tiny_models["qwen2"])
    assert read_json(tmp_path / "needs.json")["constraint"] == 3 * 3 + 2 * 2


def test_a_pipeline_asks_for_its_prompts_its_format_and_its_adapters() -> None:
    settings = merge(load_preset("pipeline", "quickstart"), {"teacher": {"kind": "prompt"}, "target": "owl,wolf"})
    settings["teacher"].pop("train", None)
    study = build(PipelineConfig, merge(settings, {"carrier": {"constraint": {"count": 5}}}))
    needs = base_needs(study)
    assert [name in text for name, text in zip(("owl", "wolf"), needs.systems, strict=True)] == [True, True]
    assert needs.constraint == NumberFormat(count=5)
    assert "q_proj" in needs.target_modules
    assert base_needs(study.model_copy(update={"second_draw": True})).systems == ()


@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_would_fail_at_its_students_ends_before_its_teacher(published: Path, store_root: Path) -> None:
    settings = ("model.kind=local", f"model.path={published}", 'student.method.target_modules=["c_attn"]')
    done = forked.command("run", "pipeline", *(part for each in settings for part in ("--set", each)))
    assert done.returncode == 2
    assert "no module c_attn" in done.stderr
    made = {path.parent.parent.name for path in store_root.glob("*/*/manifest.json")}
    assert made == {"prepare_model"}
