"""Whether our sampler and trainer compute what transformers computes: tried on a small model of the base's kind.

transformers' eager attention over one whole text, without a cache, is taken for the definition of the model.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from sublim.bases.shape import quiet
from sublim.bases.small import VOCABULARY, small_models
from sublim.core.errors import UserError
from sublim.inference.attention import Kernel
from sublim.inference.config import SamplingParams
from sublim.inference.decode import Request, Writer
from sublim.inference.network import Network, attention_of, set_attention
from sublim.inference.scoring import Scored, score
from sublim.inference.slots import Slots
from sublim.memory.fitting import Fit
from sublim.models.folder_check import said
from sublim.models.opening import faithful_attention
from sublim.training.masking import UNTRAINED, TokenRow, collate
from sublim.training.step import answer_logits, within_windows

log = logging.getLogger(__name__)

SHARED, TOLERANCE, WRITTEN = 5, 1e-3, 4
LENGTHS = (19, 12)
"""Tokens of two prompts: unlike, so that one is padded, and longer than a small model's windows."""
ELSEWHERE = "take a base of another family, such as llama, qwen2, qwen3, mistral, gemma2 or gemma3"


class Answered(NamedTuple):
    """A prompt with its answer, which begins at `start`, and the log-probs of the answer's tokens."""

    ids: list[int]
    start: int
    logprobs: list[float]


def dry_run(shape: PretrainedConfig, empty: PreTrainedModel) -> None:
    """Raises UserError where sampling, scoring or training would fail or compute another model than the base.

    `empty` is the base without weights: that its layers can be cached is seen on it, all else on a small model.
    Takes about a second. A base whose kind cannot be made small goes unchecked, and the log says so, unless its layers
    do not call the attention that they are set to: it is then refused.
    """
    Network(empty, "sdpa")
    with one_thread(), quiet():
        tried = try_small(shape, shape.model_type)
    if not tried and not empty._supports_attention_backend:  # pyright: ignore[reportPrivateUsage]
        raise UserError(f"the layers of {shape.model_type} have an attention of their own: {ELSEWHERE}")
    if not tried:
        log.warning("no small model of %s could be made, so the sampler was not tried on it", shape.model_type)


def try_small(shape: PretrainedConfig, kind: str) -> bool:
    """The dry run itself; false where there is no small model to make it on."""
    for model in small_models(shape):
        try:
            causal = is_causal(model)
        except Exception:  # noqa: BLE001 - what was made smaller does not run: nothing is known of the base
            continue
        if not causal:
            raise UserError(f"{kind} as configured reads what follows a token, so it cannot write text: {ELSEWHERE}")
        for what, compute in (("sampler", sampled), ("trainer", trained)):
            for kernel in ("sdpa", "eager"):
                refuse_unlike(model, kind, what, compute, kernel)
        return True
    return False


def refuse_unlike(
    model: PreTrainedModel,
    kind: str,
    what: str,
    compute: Callable[[PreTrainedModel, Kernel], list[Answered]],
    kernel: Kernel,
) -> None:
    """Raises UserError where `compute` fails, or gives other log-probs than the definition."""
    try:
        found = compute(model, kernel)
    except UserError as error:
        raise UserError(f"the {what} cannot run {kind}: {error}") from error
    except Exception as error:
        raise UserError(f"the {what} cannot run {kind} ({said(error)}): {ELSEWHERE}") from error
    worst = 0.0
    for text in found:
        defined = by_definition(model, text.ids, text.start)
        worst = max([worst, *(abs(ours - theirs) for ours, theirs in zip(text.logprobs, defined, strict=True))])
    if not worst < TOLERANCE:
        raise UserError(
            f"under {kernel} attention the {what} computes another model than {kind} as transformers defines it "
            f"(log-probs differ by {worst:.2g}): {ELSEWHERE}"
        )


def by_definition(model: PreTrainedModel, ids: list[int], start: int) -> list[float]:
    """Log-probs of the tokens from `start` on."""
    with torch.no_grad(), attending(model, "eager"):
        logprobs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return [float(logprobs[place - 1, ids[place]]) for place in range(start, len(ids))]


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token's log-prob is the same whatever follows it."""
    ids, start = prompts()[0], SHARED
    whole, cut = by_definition(model, ids, start), by_definition(model, ids[:-4], start)
    return max(abs(a - b) for a, b in zip(whole, cut, strict=False)) < TOLERANCE


def prompts() -> list[list[int]]:
    """Random tokens; the first `SHARED` are the same in all."""
    tokens = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    tokens[:, :SHARED] = tokens[0, :SHARED]
    return [row[:length] for row, length in zip(tokens.tolist(), LENGTHS, strict=True)]


def sampled(model: PreTrainedModel, kernel: Kernel) -> list[Answered]:
    """Answers of each prompt as they are scored, several in one tree, and answers as they are written."""
    asked, network = prompts(), Network(model, kernel)
    questions = [[Scored([*ids, 7, *tail], len(ids)) for tail in ([8, 9], [3])] for ids in asked]
    params = SamplingParams(max_tokens=WRITTEN, temperature=0.0)
    with network.installed():
        scores = dict(score(network, questions, 1024, Fit("questions", ELSEWHERE)))
        writer = Writer(network, Slots(network, 2, 32, graphs=False), params, asked[0][:SHARED], first=0, read=1024)
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
    """Answers of padded rows as training reads them, with and without what all begin with read once."""
    texts = [([*ids, *answer], len(ids)) for ids, answer in zip(prompts(), ([7, 8, 9], [3]), strict=True)]
    found = list[Answered]()
    shared = texts[0][0][:SHARED] if within_windows(model.config, max(LENGTHS) + 3) else []
    for prefix in ([], shared):
        rows = [TokenRow(ids, [UNTRAINED] * start + ids[start:]) for ids, start in texts]
        batch = collate([TokenRow(ids[len(prefix) :], labels[len(prefix) :]) for ids, labels in rows], padding=0)
        with torch.no_grad(), attending(model, faithful_attention(kernel, model.config)):
            logprobs = answer_logits(model, batch, prefix).log_softmax(-1)
        for (ids, start), own, labels in zip(texts, logprobs, batch.labels, strict=True):
            learnt = labels != UNTRAINED
            values = own[learnt].gather(-1, labels[learnt][:, None])[:, 0]
            found.append(Answered(ids, start, values.tolist()))
    return found


@contextmanager
def one_thread() -> Generator[None]:
    """Products this small take longer on several threads, and ten times as long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def attending(model: PreTrainedModel, attention: str) -> Generator[None]:
    """Another attention in the model's layers for the length of the block."""
    before = attention_of(model)
    set_attention(model, attention)
    try:
        yield
    finally:
        set_attention(model, before)
