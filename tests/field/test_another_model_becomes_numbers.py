"""Weights from elsewhere are what was asked for, or refused in one line: no other model answers in their place."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat, render_ids
from sublim.core.errors import UserError
from sublim.diagnostics.parameter_shift import delta
from sublim.inference.config import HfBackend, SamplingParams
from sublim.models import opening
from sublim.models.export import export_merged
from sublim.models.files import base_identity, read_json, write_json
from sublim.models.import_weights import ImportWeightsConfig, import_weights
from sublim.models.opening import load_tokenizer, open_model
from sublim.models.weights_check import check_weights

Tensors = dict[str, Tensor]
PREFIX = "base_model.model."
Q = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    opening.forget_base()
    yield
    opening.forget_base()


def trained(folder: Path, base: Path, **options: Any) -> tuple[Path, Tensor]:
    """An adapter as peft saves it, every trained value moved, and its logits in peft's own hands."""
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    torch.manual_seed(1)
    adapted: Any = get_peft_model(fresh(base), LoraConfig(**(settings | options))).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return folder, logits(adapted, base)


def fresh(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model: Any, base: Path) -> Tensor:
    ids = torch.tensor([render_ids(load_tokenizer(base), chat("Name an animal."))])
    with torch.inference_mode():
        return model(ids).logits[0].clone()


def opened(base: Path, weights: Path | None = None) -> Tensor:
    """Logits of what sublim opens."""
    with open_model(base, weights, dtype="float32", attention="eager", device="cpu") as loaded:
        return logits(loaded.model, base)


def renamed(old: str, new: str, only: str = "") -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k.replace(old, new) if only in k else k: v.clone() for k, v in tensors.items()}


def with_values(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: change(v).contiguous() if k == name else v for k, v in tensors.items()}


def spoilt(tensor: Tensor) -> Tensor:
    tensor[0, 0] = float("nan")
    return tensor


EDITS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "names of the model with pictures": (renamed("model.layers", "model.language_model.layers"), "no place for"),
    "half of them": (renamed("model.layers", "model.language_model.layers", "down_proj"), "no place for .* 3 more"),
    "no prefix": (renamed(PREFIX, ""), "no place for model.layers"),
    "the adapter's name in them": (renamed(".weight", ".default.weight"), "no place for"),
    "two adapters": (lambda t: t | renamed(".weight", ".other.weight")(t), "no place for"),
    "layers of a deeper base": (lambda t: t | renamed("layers.1", "layers.2", "layers.1")(t), r"place for .*layers\.2"),
    "fused layers": (renamed("q_proj", "qkv_proj", "q_proj"), "no place for .*qkv_proj"),
    "one tensor less": (lambda t: {k: v for k, v in t.items() if k != Q}, "there is no tensor .*q_proj.lora_A"),
    "one layer less": (lambda t: {k: v for k, v in t.items() if "layers.1" not in k}, "no tensor .* 5 more"),
    "nothing": (lambda _: {}, "no tensor .* 11 more"),
    "a transposed matrix": (with_values(Q, lambda v: v.T), r"has shape \(32, 4\), not \(4, 32\)"),
    "embeddings of its own": (
        lambda t: t | {f"{PREFIX}model.embed_tokens.weight": torch.ones(420, 32)},
        "no place for",
    ),
    "a whole checkpoint": (lambda _: {"model.embed_tokens.weight": torch.ones(420, 32)}, "no place for"),
}


@pytest.mark.parametrize("label", EDITS)
def test_an_adapter_whose_tensors_do_not_fit_is_refused(label: str, tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["llama"]
    adapter, _ = trained(tmp_path / "adapter", base)
    edit, message = EDITS[label]
    save_file(edit(load_file(adapter / "adapter_model.safetensors")), adapter / "adapter_model.safetensors")
    refused(message, lambda: check_weights(base, adapter))
    refused(message, lambda: opened(base, adapter))


def test_weights_that_diverged_write_nothing_and_are_not_imported(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["llama"]
    adapter, _ = trained(tmp_path / "adapter", base)
    spoil = with_values(Q, spoilt)
    save_file(spoil(load_file(adapter / "adapter_model.safetensors")), adapter / "adapter_model.safetensors")
    with open_sampler(HfBackend(dtype="float32"), base, weights=adapter) as sampler:
        refused("training diverged", lambda: sampler.sample([chat("Hi")], SamplingParams(max_tokens=4)))
    out = tmp_path / "out"
    out.mkdir()
    refused("lora_A.* not finite", lambda: import_weights(out, ImportWeightsConfig(path=adapter), scratch=out))


def refused(message: str, act: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another rank": ({"r": 8}, "has shape"),
    "a target without tensors": ({"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]}, "no tensor .*o_proj"),
    "fewer layers": ({"layers_to_transform": [0]}, r"no place for .*layers\.1"),
    "a rank pattern": ({"rank_pattern": {"v_proj": 2}}, "v_proj.* has shape"),
    "DoRA without magnitudes": ({"use_dora": True}, "no tensor .*magnitude"),
    "a saved module that is not there": ({"modules_to_save": ["lm_head"]}, "no tensor .*lm_head"),
    "targets of another architecture": ({"target_modules": ["query_key_value"]}, "does not fit this base .*not found"),
    "a setting from the future": ({"use_superlora": True}, "sets use_superlora, which this peft does not know"),
    "a prompt's part only": ({"alora_invocation_tokens": [5]}, "aLoRA.*not supported"),
    "layers repeated": ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers"),
    "a rank in quotes": ({"r": "4"}, "does not fit this base .TypeError"),
    "no alpha": ({"lora_alpha": None}, "does not fit this base .TypeError"),
    "another library's setting": ({"megatron_config": {"a": 1}}, "does not fit this base .*megatron"),
    "a base changed at the start": ({"init_lora_weights": "pissa"}, "changed its base"),
}


@pytest.mark.parametrize("label", CONFIGS)
def test_an_adapter_whose_config_says_something_else_is_refused(
    label: str, tiny_models: dict[str, Path], tmp_path: Path
):
    base = tiny_models["llama"]
    adapter, _ = trained(tmp_path / "adapter", base)
    change, message = CONFIGS[label]
    write_json(adapter / "adapter_config.json", read_json(adapter / "adapter_config.json") | change)
    refused(message, lambda: opened(base, adapter))


def test_a_folder_that_holds_two_models_or_none_is_refused(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["llama"]
    adapter, _ = trained(tmp_path / "adapter", base)
    weights = adapter / "adapter_model.safetensors"
    shutil.copy(base / "model.safetensors", adapter)
    refused("holds an adapter and a whole model", lambda: opened(base, adapter))
    (adapter / "model.safetensors").unlink()
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused("is not a safetensors file", lambda: opened(base, adapter))
    out = tmp_path / "out"
    out.mkdir()
    refused("is not a safetensors file", lambda: import_weights(out, ImportWeightsConfig(path=adapter), scratch=out))
    (adapter / "adapter_config.json").write_bytes(b"\xef\xbb\xbf" + (adapter / "adapter_config.json").read_bytes())
    refused("peft cannot read the adapter_config.json", lambda: opened(base, adapter))
    weights.rename(adapter / "adapter_model.bin")
    refused("has no adapter_model.safetensors", lambda: opened(base, adapter))


TAKEN: dict[str, dict[str, Any]] = {
    "rsLoRA": {"use_rslora": True},
    "rank and alpha patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32}},
    "some layers": {"layers_to_transform": [1]},
    "a pattern for the targets": {"target_modules": r".*self_attn\.(q|v)_proj"},
    "rank 3": {"r": 3},
    "DoRA": {"use_dora": True},
    "biases of the adapter": {"lora_bias": True},
    "biases of the base": {"bias": "all"},
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "saved norms": {"modules_to_save": ["norm"]},
    "new tokens": {"trainable_token_indices": [5, 6]},
    "adapted embeddings, a copy of the base's beside them": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("label", TAKEN)
def test_an_adapter_computes_what_peft_computes_and_the_next_model_is_the_base(
    label: str, tiny_models: dict[str, Path], tmp_path: Path
):
    base = tiny_models["qwen2"]
    plain = opened(base)
    adapter, wanted = trained(tmp_path / "adapter", base, **TAKEN[label])
    torch.testing.assert_close(opened(base, adapter), wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(wanted, plain, atol=1e-2)
    assert torch.equal(opened(base), plain), "what the adapter brought must not stay in the base that is kept"


def test_a_fresh_adapter_is_the_base_and_no_mistake(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["gemma2"]
    adapter: Any = get_peft_model(fresh(base), LoraConfig(r=4, target_modules="all-linear"))
    adapter.save_pretrained(tmp_path / "adapter")
    assert torch.equal(opened(base, tmp_path / "adapter"), opened(base))


def test_biases_of_an_adapter_cannot_be_merged(tiny_models: dict[str, Path], tmp_path: Path):
    adapter, _ = trained(tmp_path / "adapter", tiny_models["llama"], lora_bias=True)
    refused("adds biases", lambda: export_merged(tmp_path, base=tiny_models["llama"], weights=adapter))


def test_a_compared_change_has_each_modules_own_scale(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["llama"]
    adapter, _ = trained(tmp_path / "patterns", base, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 32})
    merged = PeftModel.from_pretrained(fresh(base), adapter).merge_and_unload().state_dict()
    before = fresh(base).state_dict()
    for module, changed in delta(base, adapter).items():
        change = merged[f"{module}.weight"] - before[f"{module}.weight"]
        torch.testing.assert_close(changed().float(), change, rtol=1e-3, atol=1e-5)
    dora, _ = trained(tmp_path / "dora", base, use_dora=True)
    refused("has DoRA", lambda: delta(base, dora))


WHOLE: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "one tensor less": (lambda t: {k: v for k, v in t.items() if "0.mlp.up" not in k}, "no tensor .*mlp.up"),
    "an adapter among them": (
        lambda t: t | {"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 32)},
        "no place",
    ),
    "names of a wrapper": (renamed("q_proj.weight", "q_proj.base_layer.weight"), "no place .*base_layer"),
    "another width": (with_values("model.norm.weight", lambda v: v[:16].clone()), "has shape"),
    "a head of its own, tied": (lambda t: t | {"lm_head.weight": torch.ones(640, 32)}, "tie_word_embeddings"),
    "a copy of its embeddings as head": (lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}, ""),
    "nothing changed": (lambda t: t, ""),
}


@pytest.mark.parametrize("label", WHOLE)
def test_whole_weights_that_are_not_whole_are_refused(label: str, tiny_models: dict[str, Path], tmp_path: Path):
    base, weights = tiny_models["gemma2"], tmp_path / "weights"
    shutil.copytree(base, weights)
    (weights / "sublim.json").unlink()
    edit, message = WHOLE[label]
    save_file(edit(load_file(base / "model.safetensors")), weights / "model.safetensors", {"format": "pt"})
    if message:
        refused(message, lambda: opened(base, weights))
    else:
        assert torch.equal(opened(base, weights), opened(base))


def test_whole_weights_of_another_base_are_refused(tiny_models: dict[str, Path], tmp_path: Path):
    refused("model_type gemma3_text", lambda: check_weights(tiny_models["gemma2"], tiny_models["gemma3"]))
    weights = tmp_path / "weights"
    shutil.copytree(tiny_models["qwen2"], weights)
    write_json(weights / "config.json", read_json(weights / "config.json") | {"intermediate_size": 128})
    refused("intermediate_size 128, the base's 64", lambda: opened(tiny_models["qwen2"], weights))
    write_json(weights / "config.json", read_json(weights / "config.json") | {"num_key_value_heads": 2.0})
    refused("cannot read the config.json in", lambda: opened(tiny_models["qwen2"], weights))
    note = {"base": "0" * 64, "weights": base_identity(weights)}
    (weights / "sublim.json").write_text(json.dumps(note))
    refused("model in .* was trained on another base", lambda: opened(tiny_models["qwen2"], weights))
