"""On a GPU: CUDA graphs change no draw, and bfloat16 draws have the log-probs that the scorer gives them."""

from pathlib import Path

import pytest

from sublim.backends.opening import open_sampler
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from tests.sublim.backends.test_hf import tokens
from tests.sublim.inference.plain import CHATS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["qwen2", "gemma2-window", "gemma3"])
def test_cuda_graphs_change_no_draw(family: str, windowed: dict[str, Path]):
    drawn, params = list[object](), SamplingParams(max_tokens=30, n=3)
    for graphs in (True, False):
        backend = HfBackend(dtype="float32", attention="sdpa", cuda_graphs=graphs, batch_size=8)
        with open_sampler(backend, windowed[family]) as sampler:
            # Later calls replay the graphs of earlier ones.
            for constraint in (NumberFormat(count=4), None, NumberFormat(count=4), NumberFormat(count=4, digits=2)):
                drawn.append(tokens(sampler.sample(CHATS, params, constraint=constraint)))
    assert drawn[:4] == drawn[4:]
    assert drawn[0] == drawn[2]


def test_bfloat16_draws_have_the_log_probs_the_scorer_gives(smollm2: Path):
    with open_sampler(HfBackend(), smollm2) as sampler:
        answers = sampler.sample(CHATS, SamplingParams(max_tokens=16, logprobs=True))
        scored = sampler.logprobs(CHATS, [[answer.text] for [answer] in answers])
    compared = 0
    for [answer], [own] in zip(answers, scored, strict=True):
        ours = (answer.logprobs or [])[: len(own)]
        # A text may have other tokens than those it was drawn as.
        if answer.finish == "length" and len(own) == len(answer.token_ids or []):
            assert sum(abs(a - b) for a, b in zip(ours, own, strict=True)) / len(own) < 0.1
            compared += 1
    assert compared >= 3


def test_thousands_of_answers_are_the_same_in_few_batches_and_in_many(smollm2: Path):
    answers = list[list[str]]()
    for batch_size in (None, 300):
        backend = HfBackend(dtype="float32", batch_size=batch_size)
        with open_sampler(backend, smollm2) as sampler:
            drawn = sampler.sample(CHATS * 400, SamplingParams(max_tokens=48), constraint=NumberFormat())
        answers.append([answer.text for [answer] in drawn])
    # Where a random number lies within rounding of the border between two digits, they part.
    assert sum(a == b for a, b in zip(*answers, strict=True)) > 0.98 * len(answers[0])
    # Not all: the model is fond of counting on from 101.
    assert len({*answers[0]}) > 0.8 * len(answers[0])
