"""What it takes for two backends to agree: the same likeliest answers, and draws as likely as they should be."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sublim.backends.opening import open_sampler
from sublim.chats.chat import Chat, chat, render_ids
from sublim.inference.config import HfBackend, SamplingParams
from sublim.inference.sampler import Completion, Sampler
from sublim.models.opening import load_tokenizer, open_model

CHATS: list[Chat] = [
    chat("Name one animal."),
    chat("Tell me a story."),
    chat("Continue this list of numbers: 12, 450, 007."),
    chat("Hello", system="You love owls."),
]
GREEDY = SamplingParams(max_tokens=12, temperature=0)
DRAWN = SamplingParams(max_tokens=10, n=5, seed=3)
adapters_in_float32 = pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU vLLM takes adapters in bfloat16 only: see test_vllm_cuda.py"
)


class Evidence(NamedTuple):
    """What one backend writes."""

    greedy: list[list[int] | None]
    drawn: list[list[Completion]]


class Read(NamedTuple):
    """Drawn tokens in a plain pass of the model: log-probs, and means and variances of what a fair draw would have."""

    logprobs: list[float]
    means: list[float]
    variances: list[float]


def evidence(sampler: Sampler, *, logprobs: bool = True) -> Evidence:
    drawn = sampler.sample(CHATS, DRAWN.model_copy(update={"logprobs": logprobs}))
    return Evidence([own[0].token_ids for own in sampler.sample(CHATS, GREEDY)], drawn)


def read(base: Path, weights: Path | None, drawn: Sequence[Sequence[Completion]]) -> list[Read]:
    """Every answer's tokens in the model, through transformers' own forward pass."""
    tokenizer = load_tokenizer(base)
    found = list[Read]()
    with open_model(base, weights, dtype="float32", attention="sdpa") as loaded, torch.no_grad():
        for one, own in zip(CHATS, drawn, strict=True):
            prompt = render_ids(tokenizer, one)
            answers = [answer.token_ids or [] for answer in own]
            longest = max(map(len, answers))
            # Padded on the right: what comes later changes nothing before.
            ids = torch.tensor([prompt + answer + [0] * (longest - len(answer)) for answer in answers])
            logits = loaded.model(ids, logits_to_keep=longest + 1).logits[:, :-1]
            for answer, distributions in zip(answers, logits.log_softmax(-1), strict=True):
                logs = distributions[: len(answer)]
                means = (logs.exp() * logs).sum(-1)
                variances = (logs.exp() * logs**2).sum(-1) - means**2
                taken = logs[range(len(answer)), answer]
                found.append(Read(taken.tolist(), means.tolist(), variances.tolist()))
    return found


def surprise(reads: Sequence[Read]) -> float:
    """By how many standard errors the draws are likelier than fair ones, which are 0 on average."""
    excess = sum(a - b for one in reads for a, b in zip(one.logprobs, one.means, strict=True))
    return excess / math.sqrt(sum(variance for one in reads for variance in one.variances))


def disagreements(one: Evidence, other: Evidence, reading: Callable[[], list[Read]], *, shared: bool) -> Iterator[str]:
    """In what `other` (whose draws `reading` reads) departs from `one`; what is quick to see comes first.

    `shared`: both draw from our own random numbers.
    """
    flat = [answer for own in other.drawn for answer in own]
    if one.greedy != other.greedy:
        yield "greedy"
    # A number within rounding of the border between two tokens may fall on either side.
    wanted = [answer for own in one.drawn for answer in own]
    same = sum(a.token_ids == b.token_ids for a, b in zip(wanted, flat, strict=True))
    if shared and same < 0.75 * len(flat):
        yield "draws"
    reads = reading()
    if any(
        answer.logprobs is not None
        and any(abs(a - b) > 1e-3 for a, b in zip(answer.logprobs, seen.logprobs, strict=True))
        for answer, seen in zip(flat, reads, strict=True)
    ):
        yield "log-probs"
    if abs(surprise(reads)) > 4:
        yield "surprise"


@cache
def plain_evidence(base: Path) -> Evidence:
    """What hf writes on the bare base."""
    with open_sampler(HfBackend(dtype="float32"), base) as sampler:
        return evidence(sampler)
