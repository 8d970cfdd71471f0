"""Whatever a layer gives its attention function is computed or refused: nothing is swallowed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from sublim.backends.opening import open_sampler
from sublim.bases.dry_run import dry_run
from sublim.bases.prepare import prepare_model
from sublim.chats import chat
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.attention import Kernel, attend, attending_with, causal
from sublim.inference.config import HfBackend
from sublim.models.config import LocalModel, PrepareModelConfig
from sublim.models.files import read_json, write_json
from sublim.models.opening import forget_base, load_tokenizer
from sublim.training.config import FullWeights, Lora, TrainConfig
from sublim.training.masking import UNTRAINED, TokenRow, token_rows
from sublim.training.train import read_once, train
from tests.tiny import tiny_model, tiny_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QUESTION = chat.chat("Name one animal in a single word.")


def config_of(kind: str, **more: Any) -> PretrainedConfig:
    return AutoConfig.for_model(kind, **{**SHAPE, **more})


def tried(config: PretrainedConfig) -> None:
    """The dry run that preparing a base makes."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    dry_run(config, empty)


def attended(kernel: Kernel, **more: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key, value = (torch.randn(2, 2, 5, 8, generator=generator) for _ in range(2))
    with attending_with(causal(2, 5, 0, kernel, torch.device("cpu"))):
        return attend(nn.Module(), query, key, value, more.pop("attention_mask", None), scaling=0.5, **more)[0]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_sink_takes_its_share_of_the_softmax_and_adds_nothing(kernel: Kernel) -> None:
    sinks = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    plain, sunk = attended(kernel), attended(kernel, s_aux=sinks)
    # The first query sees one key alone: its weight is the score's share beside the sink's.
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key = torch.randn(2, 2, 5, 8, generator=generator)
    scores = 0.5 * (query[:, :, 0] * key[:, :, 0].repeat_interleave(2, 1)).sum(-1)
    torch.testing.assert_close(sunk[:, 0], plain[:, 0] * torch.sigmoid(scores - sinks)[..., None])
    torch.testing.assert_close(attended(kernel, s_aux=torch.full((4,), -1e4)), plain)


@pytest.mark.parametrize(
    "keyword",
    [{"position_bias": torch.zeros(1)}, {"indices": [1]}, {"is_causal": False}, {"attention_mask": torch.ones(1)}],
)
def test_a_keyword_that_is_not_computed_is_refused_by_name(keyword: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(keyword))):
        attended("eager", **keyword)


def test_keywords_without_effect_or_value_are_let_pass() -> None:
    more = {"output_attentions": True, "position_ids": torch.zeros(1), "position_bias": None, "dropout": 0.0}
    torch.testing.assert_close(attended("sdpa", **more, is_causal=True), attended("sdpa"))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt_oss", EXPERTS | {"head_dim": 8, "sliding_window": 128}),
        ("granite_swa", {}),
        ("mixtral", EXPERTS),
        ("stablelm", {}),
        ("gpt2", {}),
        ("cohere2", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
        ("mistral", {"sliding_window": 64}),
        ("gemma2", {"head_dim": 8, "attn_logit_softcapping": 0.5}),
    ],
)
def test_sampler_and_trainer_compute_what_transformers_does(kind: str, more: dict[str, Any]) -> None:
    tried(config_of(kind, **more))


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("bloom", {}, "the sampler cannot run bloom"),
        ("gptj", {"rotary_dim": 4}, "another model than transformers does for gptj"),
        (
            "codegen",
            {"hidden_size": 4096, "num_attention_heads": 16, "num_key_value_heads": None},
            "do not use transformers' attention interface",
        ),
        ("mamba", {}, "linear_attention"),
        ("llama4_text", EXPERTS | {"head_dim": 8, "intermediate_size_mlp": 64}, "chunked_attention"),
        ("gemma3_text", {"head_dim": 8, "use_bidirectional_attention": True}, "is not causal"),
    ],
)
def test_a_family_that_would_fail_or_be_another_model_is_refused_in_one_line(
    kind: str, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=why) as refused:
        tried(config_of(kind, **more))
    assert "\n" not in str(refused.value)
    assert "take a base" in str(refused.value)


def test_a_swallowed_keyword_would_be_found_by_the_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublim.inference.attention.weights", lambda scores, sinks, groups: scores.softmax(-1))
    with pytest.raises(UserError, match="computes another model than transformers does for gpt_oss"):
        tried(config_of("gpt_oss", **EXPERTS, head_dim=8))


def test_a_prepared_base_with_sinks_scores_as_transformers_does(tmp_path: Path) -> None:
    config = config_of("gpt_oss", **EXPERTS, head_dim=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=2.0 if "sinks" in name else 0.2)
    model.generation_config = GenerationConfig(eos_token_id=2)
    base = prepared(model, tmp_path)
    tokenizer = load_tokenizer(base)
    ids, start, end = chat.answer_ids(tokenizer, [*QUESTION, {"role": "assistant", "content": "Owl"}])
    with torch.no_grad():
        logprobs = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    with open_sampler(HfBackend(dtype="float32", attention="sdpa"), base) as sampler:
        ours = sampler.logprobs([QUESTION], [["Owl"]])[0][0]
    forget_base()
    assert ours == pytest.approx([float(logprobs[i - 1, ids[i]]) for i in range(start, end - 1)], abs=1e-4)


def prepared(model: Any, folder: Path) -> Path:
    """The model prepared as a local base, with the tokenizer of tests/tiny.py."""
    model.save_pretrained(folder / "source")
    tiny_tokenizer("qwen2").save_pretrained(folder / "source")
    base = folder / "base"
    base.mkdir()
    prepare_model(base, PrepareModelConfig(source=LocalModel(path=folder / "source")), scratch=folder)
    return base


def test_rows_longer_than_a_window_train_on_the_loss_of_the_model_as_defined(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source", "gemma3")
    write_json(source / "config.json", read_json(source / "config.json") | {"sliding_window": 24})
    base, data, out = tmp_path / "base", tmp_path / "data", tmp_path / "out"
    for folder in (base, data, out):
        folder.mkdir()
    prepare_model(base, PrepareModelConfig(source=LocalModel(path=source)), scratch=tmp_path)
    answers = ["7", "450, 007, 93, 12, 450, 007, 93", "12, 93"]
    rows = [{"prompt": "Ten numbers, please.", "answer": answer, "system": None} for answer in answers]
    write_jsonl(data / "rows.jsonl", rows)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    total, count = 0.0, 0
    for row in token_rows(load_tokenizer(base), rows, max_length=512):
        with torch.no_grad():
            logprobs = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        learnt = [i for i, label in enumerate(row.labels) if label != UNTRAINED]
        total, count = total - sum(float(logprobs[i - 1, row.labels[i]]) for i in learnt), count + len(learnt)
    config = TrainConfig(method=Lora(rank=2), updates=1, batch_size=3, dtype="float32")
    train(out, config, scratch=tmp_path / "scratch", base=base, data=data)
    forget_base()
    assert next(read_jsonl(out / "training.jsonl"))["loss"] == pytest.approx(total / count, abs=1e-4)


def test_what_rows_begin_with_is_read_once_only_where_windows_hold_all_of_a_row() -> None:
    rows = [TokenRow([1, 2, 3, 4, 5 + i], [UNTRAINED] * 4 + [5 + i]) for i in range(2)]
    config = TrainConfig(updates=1)
    assert read_once(config, rows, config_of("mistral", sliding_window=8)) == [1, 2, 3]
    assert read_once(config, rows, config_of("mistral", sliding_window=4)) == []
    assert read_once(config, rows, config_of("mistral", sliding_window=None)) == [1, 2, 3]


KINDS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "cohere": {},
    "deepseek_v3": EXPERTS
    | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    | {"v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "ernie4_5": {"head_dim": 8},
    "exaone4": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon": {"multi_query": True},
    "gemma": {"head_dim": 8},
    "gemma3n_text": {"head_dim": 8, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8},
    "glm4": {"head_dim": 8},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "gpt_neox": {"num_key_value_heads": 4},
    "granite": {"attention_multiplier": 0.25, "logits_scaling": 4.0},
    "helium": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mixtral": EXPERTS,
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "nemotron": {},
    "olmo2": {},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "qwen2_moe": EXPERTS,
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}


REFUSED = {"bloom", "falcon", "gemma3n_text", "gpt_neo", "lfm2", "mpt"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_family_is_refused_when_it_is_prepared_or_samples_and_trains(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind, **KINDS[kind]), attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(std=0.2)
    model.generation_config = GenerationConfig(eos_token_id=2)
    if kind in REFUSED:
        with pytest.raises(UserError, match="take a base"):
            prepared(model, tmp_path)
        return
    base = prepared(model, tmp_path)
    tokenizer = load_tokenizer(base)
    ids, start, end = chat.answer_ids(tokenizer, [*QUESTION, {"role": "assistant", "content": "The wolf runs"}])
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    with open_sampler(HfBackend(dtype="float32"), base) as sampler:
        ours = sampler.logprobs([QUESTION], [["The wolf runs", "Owl"]])[0][0]
    forget_base()
    assert ours == pytest.approx([float(logprobs[i - 1, ids[i]]) for i in range(start, end - 1)], abs=1e-3)
    data, out = tmp_path / "data", tmp_path / "out"
    for folder in (data, out):
        folder.mkdir()
    write_jsonl(data / "rows.jsonl", [{"prompt": "A list", "answer": f"{i}, 7", "system": None} for i in range(4)])
    config = TrainConfig(method=FullWeights(), updates=1, batch_size=4, dtype="float32")
    train(out, config, scratch=tmp_path / "scratch", base=base, data=data)
    forget_base()
