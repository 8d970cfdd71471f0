"""Draws follow the distribution they are asked for, and an answer's random numbers are its own."""

import pytest
import torch
from scipy.stats import chisquare

from sublim.inference.draws import draw
from sublim.inference.noise import uniforms

LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.0, -torch.inf, 0.5], dtype=torch.float64)


def frequencies(temperature: float = 1.0, top_p: float = 1.0, n: int = 20_000) -> torch.Tensor:
    numbers = torch.from_numpy(uniforms(3, 0, 0, n))
    drawn = draw(LOGITS.expand(n, -1), numbers, temperature, top_p)
    return torch.bincount(drawn.tokens, minlength=len(LOGITS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float):
    seen, probs = frequencies(temperature), torch.softmax(LOGITS / temperature, 0)
    possible = probs > 0
    assert seen[~possible].sum() == 0
    assert chisquare(seen[possible], probs[possible] / probs.sum() * seen.sum()).pvalue > 0.001


def test_top_p_keeps_the_shortest_run_of_likeliest_tokens_that_reaches_it_and_their_proportions():
    probs = torch.softmax(LOGITS, 0)
    likeliest = probs.argsort(descending=True)
    two = float(probs[likeliest[:2]].sum())
    for top_p, kept in [(two - 1e-4, 2), (two + 1e-4, 3), (1e-6, 1)]:
        seen = frequencies(top_p=top_p)
        assert set(seen.nonzero()[:, 0].tolist()) == set(likeliest[:kept].tolist())
        shares = probs[likeliest[:kept]] / probs[likeliest[:kept]].sum()
        assert kept == 1 or chisquare(seen[likeliest[:kept]], shares * seen.sum()).pvalue > 0.001


def test_temperature_zero_takes_the_likeliest_whatever_the_random_number():
    assert frequencies(temperature=0.0)[2] == 20_000


def test_the_ends_of_the_unit_interval_never_pick_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).repeat(2, 1)
    numbers = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for top_p in (1.0, 0.9):
        assert draw(logits, numbers, 1.0, top_p).tokens.tolist() == [1, 2]


def test_log_probs_are_the_models_own_before_temperature_and_top_p():
    drawn = draw(LOGITS.expand(50, -1), torch.from_numpy(uniforms(0, 0, 0, 50)), 0.3, 0.5)
    torch.testing.assert_close(
        drawn.logprobs.double(), torch.log_softmax(LOGITS, 0)[drawn.tokens], rtol=1e-5, atol=1e-5
    )


def test_rows_split_over_several_parts_draw_the_same(monkeypatch: pytest.MonkeyPatch):
    logits, numbers = torch.randn(40, 7), torch.from_numpy(uniforms(0, 0, 0, 40))
    whole = draw(logits, numbers, 1.0, 1.0)
    monkeypatch.setattr("sublim.inference.draws.CHUNK", 21)
    parts = draw(logits, numbers, 1.0, 1.0)
    assert whole.tokens.tolist() == parts.tokens.tolist()
    torch.testing.assert_close(whole.logprobs, parts.logprobs)


def test_random_numbers_depend_on_seed_chat_and_answer_and_on_nothing_else():
    base = uniforms(1, 2, 3, 8)
    assert (uniforms(1, 2, 3, 20)[:8] == base).all()
    for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2), (-1, 2, 3)]:
        assert not (uniforms(*other, 8) == base).any()
