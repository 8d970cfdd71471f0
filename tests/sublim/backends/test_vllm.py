"""The vllm sampler: one engine, many adapters, hf's own draws, and clear refusals."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams, VllmBackend
from sublim.models.files import base_identity, write_identity, write_json
from sublim.models.opening import open_model
from tests.field.test_another_model_becomes_numbers import trained
from tests.sublim.backends.agreement import CHATS, adapters_in_float32
from tests.sublim.models.test_opening import write_adapter

pytest.importorskip("vllm", reason="vLLM is not installed on this machine")

VLLM = VllmBackend(dtype="float32", max_length=512)
HF = HfBackend(dtype="float32")
WORDS = [["Owl", "Elephant"]] * len(CHATS)


@pytest.fixture(scope="module")
def adapters(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / str(seed), smollm2, seed=seed) for seed in (1, 2)]


@pytest.fixture(autouse=True, scope="module")
def _one_engine() -> Iterator[None]:
    yield
    from sublim.backends.vllm.engine import forget_engine

    forget_engine()


def test_constrained_answers_are_those_of_hf(smollm2: Path):
    params = SamplingParams(max_tokens=64, n=2, seed=1, logprobs=True)
    form = NumberFormat(count=3)
    with open_sampler(HF, smollm2) as sampler:
        ours = sampler.sample(CHATS, params, constraint=form)
    with open_sampler(VLLM, smollm2) as sampler:
        theirs = sampler.sample(CHATS, params, constraint=form)
        [alone] = sampler.sample(CHATS[2:3], params, constraint=form, first=2)
    assert [answer.text for answer in alone] == [answer.text for answer in theirs[2]]
    for a, b in zip((a for own in ours for a in own), (b for own in theirs for b in own), strict=True):
        assert (a.text, a.token_ids, a.finish) == (b.text, b.token_ids, b.finish)
        assert b.logprobs == pytest.approx(a.logprobs, abs=1e-3)
    with pytest.raises(UserError, match="raise max_tokens from 5"), open_sampler(VLLM, smollm2) as sampler:
        sampler.sample(CHATS, SamplingParams(max_tokens=5), constraint=form)


def test_temperature_and_top_p_mean_what_they_mean_to_hf(smollm2: Path):
    params = SamplingParams(max_tokens=10, n=4, temperature=0.7, top_p=0.8)
    with open_sampler(HF, smollm2) as sampler:
        ours = [answer.token_ids for own in sampler.sample(CHATS, params) for answer in own]
    with open_sampler(VLLM, smollm2) as sampler:
        theirs = [answer.token_ids for own in sampler.sample(CHATS, params) for answer in own]
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 15


@adapters_in_float32
def test_adapters_share_one_engine_and_score_as_in_hf(smollm2: Path, adapters: list[Path]):
    engines, scores = list[object](), list[list[list[list[float]]]]()
    for weights in (None, *adapters, adapters[0], None):
        with open_sampler(VLLM, smollm2, weights=weights) as sampler:
            engines.append(sampler.llm)  # pyright: ignore[reportAttributeAccessIssue]
            scores.append(sampler.logprobs(CHATS, WORDS))
    assert len(set(map(id, engines))) == 1
    assert scores[0] == scores[4] != scores[1] != scores[2]
    assert scores[1] == scores[3]
    for weights, found in ((None, scores[0]), (adapters[0], scores[1])):
        with open_sampler(HF, smollm2, weights=weights) as sampler:
            wanted = sampler.logprobs(CHATS, WORDS)
        for a, b in zip((t for q in wanted for t in q), (t for q in found for t in q), strict=True):
            assert b == pytest.approx(a, abs=2e-3)


@adapters_in_float32
def test_an_adapter_written_anew_at_its_old_path_is_read_anew(smollm2: Path, adapters: list[Path], tmp_path: Path):
    place, scores = tmp_path / "adapter", list[object]()
    for source in adapters:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        with open_sampler(VLLM, smollm2, weights=place) as sampler:
            scores.append(sampler.logprobs(CHATS[:1], WORDS[:1]))
    assert scores[0] != scores[1]


@adapters_in_float32
def test_training_payloads_and_full_weights_serve_as_weights(smollm2: Path, adapters: list[Path], tmp_path: Path):
    payload, full = tmp_path / "payload", tmp_path / "full"
    shutil.copytree(adapters[0], payload / "update-000002")
    shutil.copytree(adapters[1], payload / "update-000016")
    shutil.copytree(smollm2, full)
    tensors = load_file(full / "model.safetensors")
    name = "model.layers.20.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name] * 3}, full / "model.safetensors", {"format": "pt"})
    write_identity(full, "full")
    for weights in (payload, full):
        with open_sampler(VLLM, smollm2, weights=weights) as sampler:
            [[found]] = sampler.logprobs(CHATS[:1], [["Elephant"]])
        with open_sampler(HF, smollm2, weights=weights) as sampler:
            [[wanted]] = sampler.logprobs(CHATS[:1], [["Elephant"]])
        assert found == pytest.approx(wanted, abs=2e-3)


def ranked(directory: Path, base: Path, rank: int, target: str = "q_proj") -> Path:
    """An adapter of this rank, as peft starts one."""
    with open_model(base, dtype="float32", attention="sdpa") as loaded:
        adapted = get_peft_model(loaded.model, LoraConfig(r=rank, target_modules=[target], task_type="CAUSAL_LM"))
        adapted.save_pretrained(directory)
        adapted.unload()
    write_json(directory / "sublim.json", {"base": base_identity(base)})
    return directory


def test_refuses_adapters_it_cannot_take_before_the_first_prompt(
    smollm2: Path, tiny_models: dict[str, Path], tmp_path: Path
):
    high = ranked(tmp_path / "high", smollm2, 24)
    refusals = {
        "rank 24, the engine takes at most 8: raise max_rank": (VLLM.model_copy(update={"max_rank": 8}), high),
        "rank 600, the engine takes at most 512: merge": (VLLM, ranked(tmp_path / "huge", smollm2, 600)),
        "another base": (VLLM, ranked(tmp_path / "other", tiny_models["llama"], 4)),
        "lm_head": (VLLM, ranked(tmp_path / "head", smollm2, 4, "lm_head")),
    }
    for message, (backend, weights) in refusals.items():
        with pytest.raises(UserError, match=message), open_sampler(backend, smollm2, weights=weights):
            pass


def test_on_a_gpu_float32_takes_no_adapter(smollm2: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch):
    from sublim.backends.vllm.adapters import adapter_limits

    assert adapter_limits(VLLM.model_copy(update={"dtype": "bfloat16"}), adapters[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert adapter_limits(VLLM, None)
    with pytest.raises(UserError, match="adapters in bfloat16 only: set the backend's dtype"):
        adapter_limits(VLLM, adapters[0])


@adapters_in_float32
def test_an_adapter_is_read_whole_or_refused(smollm2: Path, tiny_models: dict[str, Path], tmp_path: Path):
    taken: dict[str, dict[str, Any]] = {
        "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32}, "use_rslora": True},
        "pattern": {"target_modules": r".*\.(5|6)\.self_attn\.(q|v)_proj", "r": 3},
    }
    for label, options in taken.items():
        weights, _ = trained(tmp_path / label, smollm2, **options)
        with open_sampler(VLLM, smollm2, weights=weights) as sampler:
            [[found]] = sampler.logprobs(CHATS[:1], [["Elephant"]])
        with open_sampler(HF, smollm2, weights=weights) as sampler:
            [[wanted]] = sampler.logprobs(CHATS[:1], [["Elephant"]])
        assert found == pytest.approx(wanted, abs=2e-2), label
    refused: dict[str, dict[str, Any]] = {
        "DoRA": {"use_dora": True},
        "lora_bias": {"lora_bias": True},
        "modules_to_save": {"modules_to_save": ["norm"]},
        "trainable_token_indices": {"trainable_token_indices": [5]},
    }
    from sublim.backends.vllm.adapters import adapter_limits

    for label, options in refused.items():
        weights, _ = trained(tmp_path / label, tiny_models["llama"], **options)
        with pytest.raises(UserError, match=f"vLLM does not support {label}.*: use the hf backend"):
            adapter_limits(VLLM, weights)


@adapters_in_float32
def test_an_adapter_that_the_engine_reads_as_another_is_found_out(
    smollm2: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from sublim.backends.vllm import sampler as vllm
    from sublim.backends.vllm.known_answer import check_answer

    with open_sampler(VLLM, smollm2, weights=adapters[0]) as sampler:
        assert isinstance(sampler, vllm.VllmSampler)
        assert sampler.adapter
        request = sampler.adapter
        check_answer(sampler.llm, request, adapters[0])
        with pytest.raises(UserError, match="vLLM does not compute what the adapter"):
            check_answer(sampler.llm, request, adapters[1])
        # Weights that are in their places, and do nothing there.
        monkeypatch.setattr(PunicaWrapperCPU, "add_lora_linear", lambda *_, **__: None)
        with pytest.raises(UserError, match="vLLM does not compute"):
            check_answer(sampler.llm, request, adapters[0])
    monkeypatch.undo()
    monkeypatch.setattr(vllm, "check_weights", lambda *_: None)
    tensors = load_file(adapters[0] / "adapter_model.safetensors")
    for part in ("", "down_proj"):
        place = tmp_path / f"renamed-{part}"
        shutil.copytree(adapters[0], place)
        renamed = {
            k.replace("model.layers", "model.language_model.layers") if part in k else k: v for k, v in tensors.items()
        }
        save_file(renamed, place / "adapter_model.safetensors")
        with (
            pytest.raises(UserError, match=r"does not compute .*language_model"),
            open_sampler(VLLM, smollm2, weights=place),
        ):
            pass


@pytest.mark.slow  # two more engines
@adapters_in_float32
def test_an_engine_too_small_for_an_adapter_makes_room_for_one_that_is_not(smollm2: Path, tmp_path: Path):
    high = ranked(tmp_path / "high", smollm2, 24)
    with open_sampler(VLLM, smollm2, weights=high) as sampler, open_sampler(HF, smollm2) as plain:
        [[found]] = sampler.logprobs(CHATS[:1], [["Elephant"]])
        [[wanted]] = plain.logprobs(CHATS[:1], [["Elephant"]])
    assert found == pytest.approx(wanted, abs=2e-3), "peft starts adapters at nothing"


def test_refuses_texts_longer_than_the_context(smollm2: Path):
    long = [chat("owl " * 600)]
    with open_sampler(VLLM, smollm2) as sampler:
        with pytest.raises(UserError, match=r"exceed the engine's limit of 512: .* raise max_length"):
            sampler.sample(long, SamplingParams(max_tokens=4))
        with pytest.raises(UserError, match="exceed the engine"):
            sampler.logprobs(long, [["Owl"]])
        assert sampler.sample(CHATS[:1], SamplingParams(max_tokens=1)), "the engine still works"
    beyond = VLLM.model_copy(update={"max_length": 100_000})
    with (
        pytest.raises(UserError, match="8192 tokens that the model supports"),
        open_sampler(beyond, smollm2),
    ):
        pass


def test_names_the_field_when_memory_does_not_suffice(smollm2: Path, monkeypatch: pytest.MonkeyPatch):
    from sublim.backends.vllm import engine

    monkeypatch.setattr(engine, "CPU_CACHE", 2**23)
    with (
        pytest.raises(UserError, match="lower the sampling backend's max_length, or raise memory_fraction"),
        open_sampler(VLLM.model_copy(update={"max_length": 4096, "memory_fraction": 0.005}), smollm2),
    ):
        pass
    for raised, kind, message in (
        (torch.OutOfMemoryError(), UserError, r"lower the sampling backend's memory_fraction \(now 0.85\)"),
        (AssertionError("Error in memory profiling. Initial free"), UserError, "another process freed"),
        (AssertionError("a fault of our own"), AssertionError, "of our own"),
    ):
        with pytest.raises(kind, match=message), engine.failures_explained(VLLM):
            raise raised
    full = "Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory utilization"
    assert engine.explained(full, VLLM).startswith(
        "the GPU has too little free memory for memory_fraction 0.85: lower it"
    )


def test_engine_options_are_in_no_key():
    changed = VLLM.model_copy(
        update={"memory_fraction": 0.3, "max_length": 64, "max_rank": 8, "eager": True, "batch_size": 2}
    )
    assert changed.identity() == VLLM.identity() == {"kind": "vllm", "dtype": "float32"}
    assert json.loads(VllmBackend().resolved().model_dump_json())["dtype"] != "auto"
