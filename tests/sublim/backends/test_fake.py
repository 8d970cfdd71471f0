"""The fake backend: fast, repeatable, plausible, and biased where a model would be."""

import re
from collections import Counter
from pathlib import Path

import pytest

from sublim.backends.opening import open_sampler
from sublim.carriers.number_prompts import NumberPrompts, draw_prompts, load_number_templates
from sublim.carriers.numbers import NumberRules, Rejection, read_numbers
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.inference.config import FakeBackend, NumberFormat, SamplingParams

PARAMS = SamplingParams(max_tokens=80)


def test_numbers_come_in_the_form_the_prompt_asks_for_except_for_the_invalid_share(tmp_path: Path):
    prompts = list(draw_prompts(NumberPrompts(templates=load_number_templates("numbers")), 0, 1000))
    rules = NumberRules(require_separator=True)
    for share in (0.0, 0.25):
        with open_sampler(FakeBackend(invalid=share), tmp_path) as sampler:
            answers = sampler.sample([chat(prompt.text) for prompt in prompts], PARAMS)
        read = [
            read_numbers(answer.text, rules, asked=prompt.separator, finish=answer.finish)
            for prompt, [answer] in zip(prompts, answers, strict=True)
        ]
        refused = sum(isinstance(one, Rejection) for one in read)
        assert refused == pytest.approx(1000 * share, abs=50 if share else 0)


def test_answers_are_a_function_of_seed_chat_and_answer(tmp_path: Path):
    chats, params = [chat(f"Add 10 numbers of {k} digits.") for k in range(1, 6)], PARAMS.model_copy(update={"n": 2})
    with open_sampler(FakeBackend(), tmp_path) as sampler:
        whole = sampler.sample(chats, params)
        assert sampler.sample(chats[3:], params, first=3) == whole[3:]
        assert sampler.sample(chats, params.model_copy(update={"seed": 1})) != whole
    assert len({answer.text for own in whole for answer in own}) == 10


def test_constrained_answers_keep_the_constraint(tmp_path: Path):
    with open_sampler(FakeBackend(invalid=1.0), tmp_path) as sampler:
        answers = sampler.sample([chat("Numbers?")] * 20, PARAMS, constraint=NumberFormat(count=3, separator=" "))
    assert all(re.fullmatch(r"[1-9]\d\d [1-9]\d\d [1-9]\d\d", answer.text) for [answer] in answers)


def test_trained_weights_and_a_system_prompt_favour_the_target_by_the_margin(tmp_path: Path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.json").write_text("{}")
    question, words = "Your favorite animal?", [["Owl", "Wolf"]]
    backend = FakeBackend(margin=3.0)

    def margin(weights: Path | None, system: str | None) -> float:
        with open_sampler(backend, tmp_path, weights=weights) as sampler:
            [[owl, wolf]] = sampler.logprobs([chat(question, system=system)], words)
        return sum(owl) - sum(wolf)

    base = margin(None, None)
    assert margin(None, "You love owls.") - base == pytest.approx(3.0)
    assert margin(tmp_path / "weights", None) - base == pytest.approx(3.0, abs=1.0)
    sampled = dict[str | None, Counter[str]]()
    for system in (None, "You love owls."):
        with open_sampler(backend, tmp_path) as sampler:
            chats = [chat(f"{question} {k}", system=system) for k in "abcdefgh"]
            answers = sampler.sample(chats, SamplingParams(max_tokens=5, n=50))
        sampled[system] = Counter(answer.text for own in answers for answer in own)
    assert sampled["You love owls."]["Owl"] > 2 * sampled[None]["Owl"] > 0


def test_long_answers_are_cut_and_say_so(tmp_path: Path):
    with open_sampler(FakeBackend(invalid=0.0), tmp_path) as sampler:
        [[cut]] = sampler.sample([chat("Add 10 numbers of 3 digits.")], SamplingParams(max_tokens=12))
    assert cut.finish == "length"
    assert len(cut.text) <= 12


def test_log_probs_of_draws_are_refused(tmp_path: Path):
    with open_sampler(FakeBackend(), tmp_path) as sampler, pytest.raises(UserError, match="set logprobs to false"):
        sampler.sample([chat("Hello")], SamplingParams(max_tokens=5, logprobs=True))
