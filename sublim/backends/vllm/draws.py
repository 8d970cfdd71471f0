"""Sampling inside vLLM with the random numbers that the hf backend uses.

A logits processor samples a token for each row and leaves that token as the only possible one for vLLM's sampler. vLLM
would seed a generator for each request and has its own top_p. With this processor both backends sample by the same
rule from the same numbers, and a constrained format needs no grammar.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from vllm import SamplingParams as EngineParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from sublim.inference.config import SamplingParams
from sublim.inference.constrained import Plan
from sublim.inference.draws import Drawn, draw
from sublim.inference.noise import uniforms

KEY = "sublim"
"""Key of a request's Answer among vLLM's extra arguments."""


class Table(NamedTuple):
    """A plan, laid out by token of the answer: the tokens that are allowed there, or the one that is forced."""

    tokens: Int[Tensor, " a"]
    allowed: Tensor
    """Boolean, of shape (answer length, `tokens`)."""
    forced: Int[Tensor, " t"]
    """The forced token, or -1."""
    draws: list[int]
    """How many tokens of the answer were sampled before this one."""


class Call:
    """What all answers of one call to `sample` share, and the log-probs of their sampled tokens."""

    def __init__(self, params: SamplingParams, plan: Plan | None, *, first: int, never: Sequence[int]) -> None:
        """`first`: index of the first chat in its stage. `never`: token ids that are never sampled."""
        self.params, self.plan, self.first, self.never = params, plan, first, never
        self.table: Table | None = None
        self.barred: Int[Tensor, " n"] | None = None
        self.drawn = list[tuple[list[tuple["Answer", int]], Tensor]]()

    def noted(self) -> None:
        """Stores in every answer its log-probs. If the engine ran a step twice, the last run counts."""
        if not self.drawn:
            return
        scores = iter(torch.cat([scores for _, scores in self.drawn]).tolist())
        for places, _ in self.drawn:
            for answer, step in places:
                answer.logprobs[step] = next(scores)


class Answer:
    """One answer that is being generated. The engine runs in this process and uses the same object."""

    def __init__(self, call: Call, chat: int, answer: int, length: int) -> None:
        self.call, self.logprobs = call, dict[int, float]()
        self.noise = uniforms(call.params.seed, call.first + chat, answer, length)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Answer":
        # vLLM copies the parameters of a request, but the log-probs must be stored in this object.
        return self


class Row(NamedTuple):
    """A row of the engine's batch: its answer, and the tokens generated so far."""

    answer: Answer
    written: list[int]


class Draws(LogitsProcessor):
    """Samples a token for each row whose request has an Answer, and makes all other tokens impossible.

    Nothing here waits for the GPU, because the engine prepares the next step while the GPU computes this one.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.rows: dict[int, Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False: the processor changes which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Keeps track of the rows in the batch; called by vLLM."""
        process_dict_updates(self.rows, batch_update, _admitted)

    def apply(self, logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The logits after sampling, in which a single token of each row is possible."""
        for call in {id(row.answer.call): row.answer.call for row in self.rows.values()}.values():
            places = [place for place, row in self.rows.items() if row.answer.call is call]
            answers = [self.rows[place].answer for place in places]
            steps = [len(self.rows[place].written) for place in places]
            everyone = places == list(range(len(logits)))
            where = async_tensor_h2d(places, self.device)
            tokens, scores = _drawn(call, logits if everyone else logits[where], answers, steps)
            if call.params.logprobs:
                call.drawn.append((list(zip(answers, steps, strict=True)), scores))
            logits[where] = -torch.inf
            logits[where, tokens] = 0.0
        return logits


def _admitted(params: EngineParams, prompt: list[int] | None, output: list[int]) -> Row | None:
    answer = (params.extra_args or {}).get(KEY)
    return None if answer is None else Row(answer, output)


def _drawn(call: Call, logits: Float[Tensor, "n v"], answers: list[Answer], steps: list[int]) -> Drawn:
    device, params = logits.device, call.params
    if call.plan is None:
        if call.never:
            if call.barred is None:
                call.barred = async_tensor_h2d([*call.never], device)
            logits.index_fill_(1, call.barred, -torch.inf)
        noise = _noise(answers, steps, device)
        return draw(logits, noise, params.temperature, params.top_p)
    if call.table is None:
        call.table = table(call.plan, device)
    made = call.table
    noise = _noise(answers, [made.draws[step] for step in steps], device)
    at = async_tensor_h2d(steps, device)
    allowed = made.allowed[at]
    forced = made.forced[at]
    drawn = draw(logits[:, made.tokens].masked_fill(~allowed, -torch.inf), noise, params.temperature, params.top_p)
    free = forced < 0
    tokens = torch.where(free, made.tokens[drawn.tokens], forced)
    return Drawn(tokens, torch.where(free, drawn.logprobs, torch.zeros_like(drawn.logprobs)))


def _noise(answers: list[Answer], draws: list[int], device: torch.device) -> Float[Tensor, " n"]:
    picked = [answer.noise[min(k, len(answer.noise) - 1)] for answer, k in zip(answers, draws, strict=True)]
    return async_tensor_h2d(np.array(picked), device)


def table(plan: Plan, device: torch.device) -> Table:
    """The plan token by token. Where a token is forced, all are allowed, so that the softmax has a finite logit."""
    forced = torch.tensor(plan.forced)
    drawn = forced < 0
    allowed = torch.ones(plan.length, len(plan.allowed), dtype=torch.bool)
    allowed[drawn] = plan.masks()
    before = drawn.cumsum(0) - drawn.long()
    return Table(torch.tensor(plan.allowed).to(device), allowed.to(device), forced.to(device), before.tolist())
