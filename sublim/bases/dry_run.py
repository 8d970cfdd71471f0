"""Checks, on a small model of the base's architecture, that our sampler and trainer agree with transformers.

The reference is a forward pass of transformers over a whole text, with eager attention and without a cache.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from sublim.bases.shape import quiet
from sublim.bases.small import VOCABULARY, small_models
from sublim.core.errors import UserError
from sublim.inference.attention import Kernel
from sublim.inference.config import SamplingParams
from sublim.inference.decode import Request, Writer
from sublim.inference.network import Network, attention_of, set_attention
from sublim.inference.scoring import Scored, score
from sublim.inference.slots import DecodeSlots
from sublim.memory.fitting import MemoryFit
from sublim.models.folder_check import short_message
from sublim.models.opening import supported_attention
from sublim.training.masking import UNTRAINED, TokenRow, collate
from sublim.training.step import answer_logits, within_windows

log = logging.getLogger(__name__)

SHARED, TOLERANCE, WRITTEN = 5, 1e-3, 4
LENGTHS = (19, 12)
"""Lengths of two prompts in tokens: different, so that one is padded, and longer than a small model's windows."""
ELSEWHERE = "take a base of another family, such as llama, qwen2, qwen3, mistral, gemma2 or gemma3"


class Answered(NamedTuple):
    """A prompt with its answer, which begins at `start`, and the log-probs of the answer's tokens."""

    ids: list[int]
    start: int
    logprobs: list[float]


def dry_run(shape: PretrainedConfig, empty: PreTrainedModel) -> None:
    """Raises UserError if sampling, scoring or training would fail on the base, or compute a different model.

    `empty` is the base without weights, used to check that its layers can be cached; all else is checked on a small
    model. This takes about a second. If no small model can be made, a warning is logged and the base is accepted,
    unless its layers do not use transformers' attention interface.
    """
    Network(empty, "sdpa")
    with one_thread(), quiet():
        tried = try_small(shape, shape.model_type)
    if not tried and not empty._supports_attention_backend:  # pyright: ignore[reportPrivateUsage]
        raise UserError(f"the layers of {shape.model_type} do not use transformers' attention interface: {ELSEWHERE}")
    if not tried:
        log.warning("no small model of %s could be made, so the sampler was not checked on it", shape.model_type)


def try_small(shape: PretrainedConfig, kind: str) -> bool:
    """Runs the checks on a small model; returns False if none can be made."""
    for model in small_models(shape):
        try:
            causal = is_causal(model)
        except Exception:  # noqa: BLE001 - the small model does not run, which says nothing about the base
            continue
        if not causal:
            raise UserError(f"{kind} as configured is not causal, so it cannot generate text: {ELSEWHERE}")
        for what, kernel in product(CHECKED, ("sdpa", "eager")):
            refuse_unlike(model, kind, what, kernel)
        return True
    return False


def refuse_unlike(model: PreTrainedModel, kind: str, what: str, kernel: Kernel) -> None:
    """Raises UserError if `what` of `CHECKED` fails or its log-probs differ from the reference."""
    try:
        found = CHECKED[what](model, kernel)
    except UserError as error:
        raise UserError(f"the {what} cannot run {kind}: {error}") from error
    except Exception as error:
        raise UserError(f"the {what} cannot run {kind} ({short_message(error)}): {ELSEWHERE}") from error
    unlike = [torch.tensor(text.logprobs) - by_definition(model, text.ids, text.start) for text in found]
    worst = float(torch.cat(unlike).abs().max())  # NaN if one of them is
    if not worst < TOLERANCE:
        raise UserError(
            f"with {kernel} attention the {what} computes another model than transformers does for {kind} "
            f"(log-probs differ by {worst:.2g}): {ELSEWHERE}"
        )


def by_definition(model: PreTrainedModel, ids: list[int], start: int) -> Tensor:
    """The reference: log-probs of the tokens from `start` on."""
    with torch.no_grad(), attending(model, "eager"):
        logprobs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return logprobs[start - 1 : -1].gather(-1, torch.tensor(ids[start:])[:, None])[:, 0]


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token's log-prob does not depend on later tokens."""
    ids, start = prompts()[0], SHARED
    whole, cut = by_definition(model, ids, start), by_definition(model, ids[:-4], start)
    return bool((whole[: len(cut)] - cut).abs().max() < TOLERANCE)


def prompts() -> list[list[int]]:
    """Two prompts of random tokens with the same first `SHARED` tokens."""
    tokens = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    tokens[:, :SHARED] = tokens[0, :SHARED]
    return [row[:length] for row, length in zip(tokens.tolist(), LENGTHS, strict=True)]


def sampled(model: PreTrainedModel, kernel: Kernel) -> list[Answered]:
    """The sampler's log-probs of given answers, two in one prefix tree, and of answers that it generates."""
    asked, network = prompts(), Network(model, kernel)
    questions = [[Scored([*ids, 7, *tail], len(ids)) for tail in ([8, 9], [3])] for ids in asked]
    params = SamplingParams(max_tokens=WRITTEN, temperature=0.0)
    with network.installed():
        scores = dict(score(network, questions, 1024, MemoryFit("questions", ELSEWHERE)))
        slots = DecodeSlots(network, 2, 32, graphs=False)
        writer = Writer(network, slots, params, asked[0][:SHARED], first=0, read=1024)
        written = list(writer.free([Request(place, 0, ids) for place, ids in enumerate(asked)], [-1], []))
    return [
        *(
            Answered(*text, logprobs)
            for place, own in scores.items()
            for text, logprobs in zip(questions[place], own, strict=True)
        ),
        *(Answered([*one.request.prompt, *one.tokens], len(one.request.prompt), one.logprobs) for one in written),
    ]


def trained(model: PreTrainedModel, kernel: Kernel) -> list[Answered]:
    """The trainer's log-probs of answers in padded rows, with and without a common prefix that is read once."""
    texts = [([*ids, *answer], len(ids)) for ids, answer in zip(prompts(), ([7, 8, 9], [3]), strict=True)]
    found = list[Answered]()
    shared = texts[0][0][:SHARED] if within_windows(model.config, max(LENGTHS) + 3) else []
    for prefix in ([], shared):
        rows = [TokenRow(ids, [UNTRAINED] * start + ids[start:]) for ids, start in texts]
        batch = collate([TokenRow(ids[len(prefix) :], labels[len(prefix) :]) for ids, labels in rows], padding=0)
        with torch.no_grad(), attending(model, supported_attention(kernel, model.config)):
            logprobs = answer_logits(model, batch, prefix).log_softmax(-1)
        for (ids, start), own, labels in zip(texts, logprobs, batch.labels, strict=True):
            learnt = labels != UNTRAINED
            values = own[learnt].gather(-1, labels[learnt][:, None])[:, 0]
            found.append(Answered(ids, start, values.tolist()))
    return found


CHECKED = {"sampler": sampled, "trainer": trained}


@contextmanager
def one_thread() -> Generator[None]:
    """Inside the block torch uses one thread: such small products are slower on several, most of all on a busy
    machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def attending(model: PreTrainedModel, attention: str) -> Generator[None]:
    """Inside the block the model's layers use another attention implementation."""
    before = attention_of(model)
    set_attention(model, attention)
    try:
        yield
    finally:
        set_attention(model, before)
