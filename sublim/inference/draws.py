"""Sampling tokens by inverse transform: a uniform random number selects a token from the distribution."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 2**26
"""Logits processed at a time; limits the float64 cumulative sums to half a gigabyte."""


class Drawn(NamedTuple):
    """A token for each row, and its log-prob under the distribution before temperature and top_p."""

    tokens: Int[Tensor, " b"]
    logprobs: Float[Tensor, " b"]


def draw(logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"], temperature: float, top_p: float) -> Drawn:
    """Samples by the inverse CDF: the first token whose cumulative probability exceeds the row's uniform number."""
    rows = max(1, CHUNK // logits.shape[-1])
    parts = [
        _draw(part.float(), u, temperature, top_p)
        for part, u in zip(logits.split(rows), uniform.split(rows), strict=True)
    ]
    return parts[0] if len(parts) == 1 else Drawn(*(torch.cat(side) for side in zip(*parts, strict=True)))


def _draw(logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"], temperature: float, top_p: float) -> Drawn:
    if temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
    else:
        probs = torch.softmax(logits / temperature, -1)
        tokens = _inverse(probs, uniform) if top_p == 1 else _nucleus(probs, uniform, top_p)
    return Drawn(tokens[:, 0], (logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True))[:, 0])


def _inverse(probs: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]) -> Int[Tensor, "b 1"]:
    # In float32 the rounding of a sum over a large vocabulary exceeds the probabilities in its tail.
    cumulated = probs.cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    # Rounding may raise u * total to the total itself, which no cumulative sum exceeds.
    goal = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # If logits are not finite, no sum exceeds the goal: the last token is returned, and its log-prob is NaN.
    return torch.searchsorted(cumulated, goal, right=True).clamp_(max=probs.shape[-1] - 1)


def _nucleus(probs: Float[Tensor, "b v"], uniform: Float[Tensor, " b"], top_p: float) -> Int[Tensor, "b 1"]:
    """Samples from the smallest set of likeliest tokens whose probabilities reach top_p; ties in vocabulary order."""
    ordered, tokens = probs.sort(stable=True, dim=-1, descending=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    return tokens.gather(-1, _inverse(ordered.masked_fill(before >= top_p, 0.0), uniform))
