"""Writing answers, many at a time: prompts are read in batches, then every row takes one step after another."""

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
from sublim.inference.network import KeysValues, Network, TextCache, Where, sent
from sublim.inference.noise import uniforms
from sublim.inference.slots import Slots
from sublim.inference.steered import parts_of


class Request(NamedTuple):
    """One answer to write: which (of the stage's chats, of the chat's answers) and after what."""

    chat: int
    answer: int
    prompt: list[int]


class Written(NamedTuple):
    """The tokens of an answer as drawn, with their log-probs."""

    request: Request
    tokens: list[int]
    logprobs: list[float]


class Batch(NamedTuple):
    """Constrained answers all of whose steps have been asked of the device, which may still be at them."""

    requests: Sequence[Request]
    made: Plan
    drawn: Int[Tensor, "b k"]
    logprobs: Float[Tensor, "b k"]
    copied: torch.cuda.Event | None
    """When what was drawn is here; None without a GPU."""

    def written(self) -> Iterator[Written]:
        """The answers, once the device has them."""
        if self.copied is not None:
            self.copied.synchronize()
        template = np.array([token for step in self.made.steps for token in (*step.forced, 0)] + [*self.made.trailing])
        columns = np.cumsum([len(step.forced) + 1 for step in self.made.steps]) - 1
        rows = len(self.requests)
        tokens, logprobs = np.tile(template, (rows, 1)), np.zeros((rows, self.made.length), np.float32)
        tokens[:, columns], logprobs[:, columns] = self.drawn.numpy(), self.logprobs.numpy()
        for request, own, own_logprobs in zip(self.requests, tokens.tolist(), logprobs.tolist(), strict=True):
            yield Written(request, own, own_logprobs)


def read_late(batches: Iterable[Batch]) -> Iterator[Written]:
    """The answers of every batch, read while the device works at the batch after it."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield from before.written()
        before = batch
    if before is not None:
        yield from before.written()


class Prompts(NamedTuple):
    """Prompts that have been read: keys and values by layer, and the logits after each."""

    cache: list[KeysValues]
    logits: Float[Tensor, "b v"]


class Writer:
    """The decode loops on one network; prompts are read `read` tokens at a time, what all begin with only once."""

    def __init__(
        self,
        network: Network,
        slots: Slots,
        params: SamplingParams,
        shared: list[int],
        *,
        first: int,
        read: int,
        begun: int = 0,
    ) -> None:
        """`begun`: tokens at the end of every prompt that belong to the answer already."""
        self.network, self.slots, self.params, self.first, self.read = network, slots, params, first, read
        self.begun = begun
        self.skip, self.shared = len(shared), network.shared(shared)

    def constrained(self, requests: Sequence[Request], made: Plan) -> Iterator[Batch]:
        """All rows in step: a drawn token goes in together with the forced ones that follow it. Waits for nothing."""
        steps, rows, device = made.steps, self.slots.cache.rows, self.network.device
        # Draws are made among the head's tokens: `allowed` says which of those each step may take.
        tokens = torch.tensor(made.allowed)
        allowed = torch.stack([torch.isin(tokens, torch.tensor(step.allowed)) for step in steps])
        allowed, tokens = sent(allowed, device), sent(tokens, device)
        forced = [_row(step.forced, device).expand(rows, -1) for step in steps]
        for at in range(0, len(requests), rows):
            batch = requests[at : at + rows]
            logits = self._fill(torch.arange(len(batch), device=device), batch)
            # A graph has one number of rows: a short last batch leaves the others idle.
            lengths = torch.zeros(rows, dtype=torch.long)
            noise = torch.zeros(rows, len(steps), dtype=torch.float64)
            lengths[: len(batch)] = torch.tensor([len(request.prompt) for request in batch])
            noise[: len(batch)] = self._noise(batch, len(steps))
            lengths, noise = sent(lengths, device), sent(noise, device)
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
            yield Batch(batch, made, *sides, copied=_mark(device))

    def free(self, requests: Sequence[Request], stop: Sequence[int], never: Sequence[int]) -> Iterator[Written]:
        """Each row until its end of turn; a row that is done makes room for the next prompt.

        `never`: ids that are not drawn.
        """
        device, limit = self.network.device, self.params.max_tokens
        burst = 8 if device.type == "cuda" else 1  # steps between two looks at which rows are done: a look waits
        ends, barred = (torch.tensor(list(ids), dtype=torch.long, device=device) for ids in (stop, never))
        waiting, state = list(reversed(requests)), _State(self.slots.cache.rows, limit, device)
        while waiting or state.busy:
            vacant = [slot for slot, request in enumerate(state.requests) if request is None]
            if waiting and (len(vacant) * 4 >= len(state.requests)):
                batch = [waiting.pop() for _ in vacant[: len(waiting)]]
                slots = torch.tensor(vacant[: len(batch)], device=device)
                logits = self._fill(slots, batch)
                state.admit(slots, batch, sent(self._noise(batch, limit), device))
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
        """Draws the next token of `slots` and writes it down where a row is live."""
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
        drawn = draw(logits, noise, self.params.temperature, self.params.top_p)
        return drawn.tokens, drawn.logprobs

    def _noise(self, batch: Sequence[Request], count: int) -> Float[Tensor, "b k"]:
        rows = [uniforms(self.params.seed, self.first + chat, answer, count) for chat, answer, _ in batch]
        return torch.from_numpy(np.stack(rows))

    def _fill(self, slots: Int[Tensor, " n"], batch: Sequence[Request]) -> Float[Tensor, "n v"]:
        """Reads the prompts of `batch` into `slots`, each chat's once, and gives the logits after them."""
        device = self.network.device
        chats = {request.chat: request.prompt for request in batch}
        places = {chat: place for place, chat in enumerate(chats)}
        source = torch.tensor([places[request.chat] for request in batch])
        logits = list[Tensor]()
        done = 0
        for part in _parts(list(chats.values()), self.skip, self.read):
            prompts = self._read(part)
            here = ((source >= done) & (source < done + len(part))).nonzero()[:, 0]
            self.slots.cache.admit(slots[sent(here, device)], prompts.cache, sent(source[here] - done, device))
            logits.append(prompts.logits)
            del prompts  # else the next part is read beside this one's keys and values
            done += len(part)
        return torch.cat(logits)[sent(source, device)]

    def _read(self, prompts: Sequence[list[int]]) -> Prompts:
        device = self.network.device
        lengths = torch.tensor([len(prompt) - self.skip for prompt in prompts])
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
        own = chain.from_iterable(prompt[self.skip :] for prompt in prompts)
        ids[torch.arange(ids.shape[1]) < lengths[:, None]] = torch.from_numpy(np.fromiter(own, np.int64))
        cache = TextCache(self.shared)
        view = causal(ids.shape[0], ids.shape[1], self.skip, self.network.kernel, device)
        where = Where(torch.arange(len(prompts), device=device), sent(lengths - 1, device))
        positions = view.queries.expand(len(prompts), -1)
        starts = sent(lengths + self.skip - self.begun, device)[:, None]
        parts = parts_of(positions, starts)
        logits = self.network.logits(sent(ids, device), positions, cache, view, where, parts)
        return Prompts(cache.own, logits)


class _State:
    """What free rows carry from step to step."""

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
        """Answers that are complete; their rows are free again."""
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
    """Neighbours that, padded to the longest of them, hold at most `limit` tokens (or one prompt)."""
    part, longest = list[list[int]](), 0
    for prompt in prompts:
        grown = max(longest, len(prompt) - skip)
        if part and grown * (len(part) + 1) > limit:
            yield part
            part, grown = [], len(prompt) - skip
        part.append(prompt)
        longest = grown
    yield part


def _row(tokens: tuple[int, ...], device: torch.device) -> Int[Tensor, "1 t"]:
    return sent(torch.tensor([tokens], dtype=torch.long), device)


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """This place in the GPU's queue, to wait for."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
