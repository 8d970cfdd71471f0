"""Batched decoding: prompts are read in batches, then all rows take one decoding step after another."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim.inference.attention import causal
from sublim.inference.config import SamplingParams
from sublim.inference.constrained import Plan
from sublim.inference.draws import draw
from sublim.inference.network import KeysValues, Network, TextCache, Where, padded, to_device
from sublim.inference.noise import uniforms
from sublim.inference.slots import DecodeSlots
from sublim.inference.steered import parts_of


class Request(NamedTuple):
    """One answer to generate: the index of its chat, its index among that chat's answers, and the prompt's tokens."""

    chat: int
    answer: int
    prompt: list[int]


class Written(NamedTuple):
    """An answer's sampled tokens with their log-probs."""

    request: Request
    tokens: list[int]
    logprobs: list[float]


class Batch(NamedTuple):
    """Constrained answers whose steps have all been queued on the device, which may still be computing them."""

    requests: Sequence[Request]
    made: Plan
    drawn: Int[Tensor, "b k"]
    logprobs: Float[Tensor, "b k"]
    copied: torch.cuda.Event | None
    """Recorded behind the copies of the results to the host; None without a GPU."""

    def written(self) -> Iterator[Written]:
        """The answers; waits until the device has computed them."""
        if self.copied is not None:
            self.copied.synchronize()
        tokens = np.tile(self.made.forced, (len(self.requests), 1))
        logprobs, drawn = np.zeros((len(tokens), self.made.length), np.float32), tokens[0] < 0
        tokens[:, drawn], logprobs[:, drawn] = self.drawn.numpy(), self.logprobs.numpy()
        for request, own, own_logprobs in zip(self.requests, tokens.tolist(), logprobs.tolist(), strict=True):
            yield Written(request, own, own_logprobs)


def read_one_behind(batches: Iterable[Batch]) -> Iterator[Written]:
    """The answers of each batch, read only after the next batch was queued, so that the device is never idle."""
    before: Batch | None = None
    for batch in chain(batches, [None]):
        if before is not None:
            yield from before.written()
        before = batch


class Prompts(NamedTuple):
    """Prompts after prefill: their keys and values by layer, and the logits after the last token of each."""

    cache: list[KeysValues]
    logits: Float[Tensor, "b v"]


class Writer:
    """The decoding loops on one network.

    Prefill takes about `read` prompt tokens at a time. `shared`, with which all prompts begin, is read only once.
    """

    def __init__(
        self,
        network: Network,
        slots: DecodeSlots,
        params: SamplingParams,
        shared: list[int],
        *,
        first: int,
        read: int,
        begun: int = 0,
    ) -> None:
        """`first`: index of the first chat in its stage. `begun`: how many tokens at the end of a prompt are already
        answer."""
        self.network, self.slots, self.params, self.first, self.read = network, slots, params, first, read
        self.begun = begun
        self.skip, self.shared = len(shared), network.shared(shared)

    def constrained(self, requests: Sequence[Request], made: Plan) -> Iterator[Batch]:
        """Decodes all rows in lockstep: a sampled token is fed together with the forced ones after it.

        Nothing here waits for the device.
        """
        steps, rows, device = made.steps, self.slots.cache.rows, self.network.device
        # The head gives logits for these tokens only; `allowed` says which of them each step may sample.
        tokens, allowed = to_device(torch.tensor(made.allowed), device), to_device(made.masks(), device)
        forced = [to_device(torch.tensor([step.forced]).long(), device).expand(rows, -1) for step in steps]
        for at in range(0, len(requests), rows):
            batch = requests[at : at + rows]
            logits = self._fill(torch.arange(len(batch), device=device), batch)
            # A CUDA graph has a fixed number of rows: in a shorter last batch the other rows compute nothing of use.
            lengths = torch.zeros(rows, dtype=torch.long)
            noise = torch.zeros(rows, len(steps), dtype=torch.float64)
            lengths[: len(batch)] = torch.tensor([len(request.prompt) for request in batch])
            noise[: len(batch)] = self._noise(batch, len(steps))
            lengths, noise = to_device(lengths, device), to_device(noise, device)
            drawn, logprobs = list[Tensor](), list[Tensor]()
            for k in range(len(steps)):
                if k:
                    new = torch.cat([drawn[-1][:, None], forced[k]], 1)
                    logits = self.slots.step(new, lengths[:, None] + torch.arange(new.shape[1], device=device))
                    lengths = lengths + new.shape[1]
                elif len(batch) < rows:
                    logits = torch.cat([logits, logits[:1].expand(rows - len(batch), -1)])
                token, logprob = self._draw(logits.masked_fill(~allowed[k], -torch.inf), noise[:, k])
                drawn.append(tokens[token])
                logprobs.append(logprob)
            sides = (torch.stack(side, 1)[: len(batch)].to("cpu", non_blocking=True) for side in (drawn, logprobs))
            copied = torch.cuda.Event() if device.type == "cuda" else None
            if copied is not None:
                copied.record()
            yield Batch(batch, made, *sides, copied=copied)

    def free(self, requests: Sequence[Request], stop: Sequence[int], never: Sequence[int]) -> Iterator[Written]:
        """Decodes each row until its end of turn, and fills rows that are done with the next prompts.

        `stop`: token ids that end an answer. `never`: token ids that are never sampled.
        """
        device, limit = self.network.device, self.params.max_tokens
        burst = 8 if device.type == "cuda" else 1  # steps between checks for finished rows, which wait
        ends, barred = (torch.tensor(list(ids), dtype=torch.long, device=device) for ids in (stop, never))
        waiting, state = list(reversed(requests)), _State(self.slots.cache.rows, limit, device)
        while waiting or state.busy:
            vacant = [slot for slot, request in enumerate(state.requests) if request is None]
            if waiting and (len(vacant) * 4 >= len(state.requests)):
                batch = [waiting.pop() for _ in vacant[: len(waiting)]]
                slots = torch.tensor(vacant[: len(batch)], device=device)
                logits = self._fill(slots, batch)
                state.admit(slots, batch, to_device(self._noise(batch, limit), device))
                self._absorb(state, slots, logits, ends, barred)
            elif not waiting and state.busy * 4 <= len(state.requests) * (1 if self.slots.graphs else 3):
                busy = [slot for slot, request in enumerate(state.requests) if request is not None]
                kept = torch.tensor(busy, device=device)
                state.keep(kept, busy)
                self.slots.keep(kept)
            everyone = torch.arange(len(state.requests), device=device)
            for _ in range(burst):
                at = (state.lengths + state.counts - 1).clamp(min=0)
                last = state.tokens.gather(1, (state.counts - 1).clamp(min=0)[:, None])
                self._absorb(state, everyone, self.slots.step(last, at[:, None]), ends, barred)
            yield from state.harvest()

    def _absorb(
        self, state: "_State", slots: Int[Tensor, " n"], logits: Float[Tensor, "n v"], ends: Tensor, barred: Tensor
    ) -> None:
        """Samples the next token of each of `slots` and stores it for the rows that are still being decoded."""
        if len(barred):
            logits.index_fill_(1, barred, -torch.inf)
        live, counts = state.live[slots], state.counts[slots]
        at = counts.clamp(max=self.params.max_tokens - 1)
        token, logprob = self._draw(logits, state.noise[slots, at])
        state.tokens[slots, at] = torch.where(live, token, state.tokens[slots, at])
        state.logprobs[slots, at] = torch.where(live, logprob, state.logprobs[slots, at])
        state.counts[slots] = counts + live
        state.live[slots] = live & ~torch.isin(token, ends) & (counts + 1 < self.params.max_tokens)

    def _draw(self, logits: Float[Tensor, "b v"], noise: Float[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        return draw(logits, noise, self.params.temperature, self.params.top_p)

    def _noise(self, batch: Sequence[Request], count: int) -> Float[Tensor, "b k"]:
        rows = [uniforms(self.params.seed, self.first + chat, answer, count) for chat, answer, _ in batch]
        return torch.from_numpy(np.stack(rows))

    def _fill(self, slots: Int[Tensor, " n"], batch: Sequence[Request]) -> Float[Tensor, "n v"]:
        """Prefills `slots` with the prompts of `batch`, each chat's once, and returns the logits after them."""
        device = self.network.device
        chats = {request.chat: request.prompt for request in batch}
        places = {chat: place for place, chat in enumerate(chats)}
        source = torch.tensor([places[request.chat] for request in batch])
        logits = list[Tensor]()
        done = 0
        for part in _parts(list(chats.values()), self.skip, self.read):
            prompts = self._read(part)
            here = ((source >= done) & (source < done + len(part))).nonzero()[:, 0]
            rows = to_device(source[here] - done, device)
            self.slots.cache.admit(slots[to_device(here, device)], prompts.cache, rows)
            logits.append(prompts.logits)
            del prompts  # frees this part's keys and values before the next is read
            done += len(part)
        return torch.cat(logits)[to_device(source, device)]

    def _read(self, prompts: Sequence[list[int]]) -> Prompts:
        device = self.network.device
        lengths = torch.tensor([len(prompt) - self.skip for prompt in prompts])
        ids = padded([prompt[self.skip :] for prompt in prompts])
        cache = TextCache(self.shared)
        view = causal(ids.shape[0], ids.shape[1], self.skip, self.network.kernel, device)
        where = Where(torch.arange(len(prompts), device=device), to_device(lengths - 1, device))
        positions = view.queries.expand(len(prompts), -1)
        starts = to_device(lengths + self.skip - self.begun, device)[:, None]
        parts = parts_of(positions, starts)
        logits = self.network.logits(to_device(ids, device), positions, cache, view, where, parts)
        return Prompts(cache.own, logits)


class _State:
    """The state of rows in unconstrained decoding."""

    def __init__(self, rows: int, limit: int, device: torch.device) -> None:
        self.requests: list[Request | None] = [None] * rows
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.counts = torch.zeros(rows, dtype=torch.long, device=device)
        self.live = torch.zeros(rows, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(rows, limit, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, limit, device=device)
        self.noise = torch.zeros(rows, limit, dtype=torch.float64, device=device)

    @property
    def busy(self) -> int:
        """How many rows hold an answer."""
        return sum(request is not None for request in self.requests)

    def admit(self, slots: Int[Tensor, " n"], batch: Sequence[Request], noise: Float[Tensor, "n k"]) -> None:
        for slot, request in zip(slots.tolist(), batch, strict=True):
            self.requests[slot] = request
        self.lengths[slots] = torch.tensor([len(request.prompt) for request in batch], device=slots.device)
        self.counts[slots], self.live[slots], self.noise[slots] = 0, True, noise

    def keep(self, slots: Int[Tensor, " n"], places: list[int]) -> None:
        self.requests = [self.requests[place] for place in places]
        self.lengths, self.counts, self.live = self.lengths[slots], self.counts[slots], self.live[slots]
        self.tokens, self.logprobs, self.noise = self.tokens[slots], self.logprobs[slots], self.noise[slots]

    def harvest(self) -> Iterator[Written]:
        """Gives the answers that are complete and frees their rows."""
        live = self.live.tolist()
        done = [slot for slot, request in enumerate(self.requests) if request is not None and not live[slot]]
        if not done:
            return
        slots = torch.tensor(done, device=self.tokens.device)
        sides = self.tokens[slots].tolist(), self.logprobs[slots].tolist(), self.counts[slots].tolist()
        for slot, tokens, logprobs, count in zip(done, *sides, strict=True):
            request = self.requests[slot]
            assert request is not None
            self.requests[slot] = None
            yield Written(request, tokens[:count], logprobs[:count])


def _parts(prompts: list[list[int]], skip: int, limit: int) -> Iterator[list[list[int]]]:
    """Consecutive prompts which, padded to the longest of them, hold at most `limit` tokens (or a single prompt)."""
    part, longest = list[list[int]](), 0
    for prompt in prompts:
        grown = max(longest, len(prompt) - skip)
        if part and grown * (len(part) + 1) > limit:
            yield part
            part, grown = [], len(prompt) - skip
        part.append(prompt)
        longest = grown
    yield part
