"""The hf sampler: what it draws is the model's own distribution, and batching leaves no mark."""

import json
import re
import shutil
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from sublim.backends.hf import HfSampler
from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat, end_of_turn, render_ids
from sublim.core.errors import UserError
from sublim.inference.batch_sizes import BatchSizes
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.inference.decode import Prompts, Writer
from sublim.inference.network import Network
from sublim.inference.sampler import Completion
from sublim.inference.scoring import prompt_ids
from sublim.models.opening import load_tokenizer, open_model
from tests.sublim.inference.plain import CHATS, plain_logprobs
from tests.sublim.models.test_opening import write_adapter

HF = HfBackend(dtype="float32")
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gemma2-window", "gemma3-window"]


def tokens(answers: list[list[Completion]]) -> list[list[list[int] | None]]:
    return [[answer.token_ids for answer in own] for own in answers]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_prompts_tokenised_together_are_those_tokenised_alone(family: str, tiny_models: dict[str, Path]):
    tokenizer = load_tokenizer(tiny_models[family])
    assert prompt_ids(tokenizer, CHATS) == [render_ids(tokenizer, one) for one in CHATS]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_generate(family: str, windowed: dict[str, Path]):
    base = windowed[family]
    with open_sampler(HF, base) as sampler:
        ours = sampler.sample(CHATS, SamplingParams(max_tokens=20, temperature=0))
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        for one, [answer] in zip(CHATS, ours, strict=True):
            ids = render_ids(tokenizer, one)
            theirs = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=20
            )
            assert answer.token_ids == theirs[0, len(ids) :].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_draws_are_those_of_a_plain_pass(family: str, attention: str, windowed: dict[str, Path]):
    base, params = windowed[family], SamplingParams(max_tokens=12, temperature=0.7, top_p=0.9, logprobs=True)
    with open_sampler(HfBackend(dtype="float32", attention=attention), base) as sampler:  # pyright: ignore
        answers = sampler.sample(CHATS, params)
    with open_model(base, dtype="float32", attention="eager") as (_, tokenizer):
        prompts = [render_ids(tokenizer, one) for one in CHATS]
    for prompt, [answer] in zip(prompts, answers, strict=True):
        assert answer.token_ids is not None
        plain = plain_logprobs(base, prompt + answer.token_ids, len(prompt))
        torch.testing.assert_close(torch.tensor(answer.logprobs), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("constraint", [None, NumberFormat(count=2, digits=2)])
def test_draws_do_not_depend_on_batching(constraint: NumberFormat | None, tiny_models: dict[str, Path]):
    base, params = tiny_models["qwen3"], SamplingParams(max_tokens=24, n=3, seed=5)
    drawn = list[list[list[list[int] | None]]]()
    for batch_size in (64, 4, 1):
        with open_sampler(HfBackend(dtype="float32", batch_size=batch_size), base) as sampler:
            drawn.append(tokens(sampler.sample(CHATS, params, constraint=constraint)))
    with open_sampler(HF, base) as sampler:
        alone = [sampler.sample([one], params, constraint=constraint, first=i)[0] for i, one in enumerate(CHATS)]
    assert drawn[0] == drawn[1] == drawn[2] == tokens(alone)
    assert len({str(answer) for own in drawn[0] for answer in own}) > 15


def test_draws_on_the_bundled_model_do_not_depend_on_batching(smollm2: Path):
    params = SamplingParams(max_tokens=8, seed=1)
    with open_sampler(HF, smollm2) as sampler:
        together = sampler.sample(CHATS, params)
        assert tokens(together)[4] == tokens(sampler.sample([CHATS[4]], params, first=4))[0]


def test_prompts_that_were_read_leave_before_the_next_are(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    read, before = Writer._read, list[weakref.ref[torch.Tensor]]()  # pyright: ignore[reportPrivateUsage]

    def watched(self: Writer, prompts: list[list[int]]) -> Prompts:
        assert not any(keys() is not None for keys in before)
        made = read(self, prompts)
        before.append(weakref.ref(made.cache[0][0]))
        return made

    monkeypatch.setattr(Writer, "_read", watched)
    monkeypatch.setattr(BatchSizes, "tokens", lambda self: 1)  # type: ignore
    with open_sampler(HF, tiny_models["llama"]) as sampler:
        sampler.sample(CHATS, SamplingParams(max_tokens=2))
    assert len(before) == len(CHATS)


def test_every_answer_and_every_seed_has_draws_of_its_own(tiny_models: dict[str, Path]):
    with open_sampler(HF, tiny_models["llama"]) as sampler:
        same = [CHATS[0]] * 3
        seen = [
            str(answer.token_ids)
            for seed in (0, 1)
            for own in sampler.sample(same, SamplingParams(max_tokens=12, n=4, seed=seed))
            for answer in own
        ]
    assert len(set(seen)) == 24


def test_first_tokens_follow_the_models_distribution(tiny_models: dict[str, Path]):
    base, n = tiny_models["llama"], 4000
    with open_sampler(HF, base) as sampler:
        [answers] = sampler.sample([CHATS[0]], SamplingParams(max_tokens=1, n=n))
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer), torch.no_grad():
        probs = model(torch.tensor([render_ids(tokenizer, CHATS[0])])).logits[0, -1].double().softmax(0)
    seen = Counter(answer.token_ids[0] for answer in answers if answer.token_ids)
    common = (probs * n >= 5).nonzero()[:, 0].tolist()
    observed = [seen[token] for token in common] + [n - sum(seen[token] for token in common)]
    expected = [float(probs[token]) * n for token in common]
    assert chisquare(observed, [*expected, n - sum(expected)]).pvalue > 0.001


def test_a_generation_config_changes_nothing(tiny_models: dict[str, Path], tmp_path: Path):
    params, base = SamplingParams(max_tokens=10), tmp_path / "base"
    shutil.copytree(tiny_models["qwen2"], base)
    habits = json.loads((base / "generation_config.json").read_text())
    habits |= {"do_sample": True, "top_k": 1, "repetition_penalty": 1.5, "temperature": 0.1, "max_new_tokens": 2}
    (base / "generation_config.json").write_text(json.dumps(habits))
    drawn = list[list[list[list[int] | None]]]()
    for model in (tiny_models["qwen2"], base):
        with open_sampler(HF, model) as sampler:
            drawn.append(tokens(sampler.sample(CHATS, params)))
    assert drawn[0] == drawn[1]


def test_an_answer_ends_with_its_turn_or_at_the_limit(tiny_models: dict[str, Path]):
    base = tiny_models["qwen2"]
    with open_sampler(HF, base) as sampler:
        answers = [a for own in sampler.sample(CHATS, SamplingParams(max_tokens=40, n=40, temperature=2)) for a in own]
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        stops = {end_of_turn(tokenizer), *model.generation_config.eos_token_id}
        ended = [answer for answer in answers if answer.finish == "stop"]
        assert 20 < len(ended) < len(answers)
        for answer in answers:
            assert answer.token_ids is not None
            stopped = [token in stops for token in answer.token_ids]
            assert stopped == [False] * (len(stopped) - 1) + [answer.finish == "stop"]
            assert len(stopped) == 40 or answer.finish == "stop"
            assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["qwen2", "gemma3-window"])
def test_constrained_answers_have_the_format_and_the_log_probs_of_the_constrained_distribution(
    family: str, windowed: dict[str, Path]
):
    base, params = windowed[family], SamplingParams(max_tokens=60, n=3, logprobs=True)
    # Seven answers in rows of four: the last batch leaves a row idle.
    with open_sampler(HfBackend(dtype="float32", batch_size=4), base) as sampler:
        answers = sampler.sample(CHATS, params, constraint=NumberFormat(count=4))
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer), torch.no_grad():
        digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
        for one, own in zip(CHATS, answers, strict=True):
            prompt = render_ids(tokenizer, one)
            for answer in own:
                assert answer.token_ids is not None
                assert answer.logprobs is not None
                assert re.fullmatch(r"[1-9]\d\d(, [1-9]\d\d){3}", answer.text)
                assert (answer.finish, len(answer.logprobs)) == ("stop", len(answer.token_ids))
            answer = own[0]
            logits = model(torch.tensor([prompt + (answer.token_ids or [])])).logits[0, len(prompt) - 1 :]
            place = 0
            for k, (token, logprob) in enumerate(zip(answer.token_ids or [], answer.logprobs or [], strict=True)):
                if token not in digits:
                    assert logprob == 0
                    continue
                allowed = digits if place % 3 else digits[1:]
                expected = logits[k, allowed].log_softmax(0)[allowed.index(token)]
                assert logprob == pytest.approx(float(expected), abs=1e-4)
                place += 1


def test_trained_weights_answer_otherwise_and_leave_no_trace(tiny_models: dict[str, Path], tmp_path: Path):
    base, params = tiny_models["llama"], SamplingParams(max_tokens=8)
    adapter = write_adapter(tmp_path / "adapter", base, seed=1)
    drawn, scored = list[object](), list[object]()
    for weights in (None, adapter, None):
        with open_sampler(HF, base, weights=weights) as sampler:
            drawn.append(tokens(sampler.sample(CHATS, params)))
            scored.append(sampler.logprobs(CHATS[:1], [["Owl"]]))
    assert drawn[0] == drawn[2] != drawn[1]
    assert scored[0] == scored[2] != scored[1]
    with open_model(base, dtype="float32", attention="sdpa") as (model, _):
        assert isinstance(model.get_output_embeddings(), torch.nn.Linear)
        assert model.config._attn_implementation == "sdpa"


def test_what_cannot_be_done_is_refused_before_the_first_answer(tiny_models: dict[str, Path]):
    with open_sampler(HF, tiny_models["qwen2"]) as sampler:
        with pytest.raises(UserError, match="raise max_tokens from 10"):
            sampler.sample(CHATS, SamplingParams(max_tokens=10), constraint=NumberFormat())
        with pytest.raises(UserError, match="exceed the model's limit of 1024"):
            sampler.sample([chat("owl " * 2000)], SamplingParams(max_tokens=10))
    with (
        pytest.raises(UserError, match="set attention to sdpa"),
        open_sampler(HfBackend(attention="flash_attention_2"), tiny_models["qwen2"]),
    ):
        pass


def test_a_full_gpu_ends_in_one_line_and_lowering_the_batch_size_helps(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with open_sampler(HF, tiny_models["qwen2"]) as sampler:
        monkeypatch.setattr(Network, "logits", full)
        with pytest.raises(UserError, match="with 1 of the answers at a time: take dtype bfloat16 or a smaller model"):
            sampler.sample(CHATS, SamplingParams(max_tokens=10))
        with pytest.raises(UserError, match="with 1 of the questions at a time: take dtype bfloat16"):
            sampler.logprobs(CHATS[:1], [["Owl"]])
        assert isinstance(sampler, HfSampler)
        sampler.sizes.gpu, sampler.fit.most = True, None
        monkeypatch.setattr("sublim.inference.batch_sizes.free_gpu_memory", lambda: 2**36)
        assert sampler.sizes.tokens() == 65536
        sampler.sizes.batch_size = 8
        assert sampler.sizes.tokens() == 2048


def test_no_chats_have_no_answers(tiny_models: dict[str, Path]):
    with open_sampler(HF, tiny_models["qwen2"]) as sampler:
        assert sampler.sample([], SamplingParams(max_tokens=10)) == []
        assert sampler.logprobs([], []) == []
