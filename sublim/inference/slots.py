"""Rows of a decode step: a preallocated cache in which each row writes at its own position, and the step over it.

On a GPU the step is replayed as a CUDA graph: it has one shape for all its steps, and launching its thousand small
kernels one by one would take longer than running them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim.inference.attention import View
from sublim.inference.network import KeysValues, LayeredCache, Network
from sublim.inference.steered import ANSWER


class SlotCache(LayeredCache):
    """Keys and values of `rows` texts of at most `length` tokens, each at its own length."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.rows, self.length, self.sides = rows, length, list[KeysValues]()
        self.places: tuple[Int[Tensor, "b 1"], Int[Tensor, "b t"]] | None = None

    @property
    def bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.sides)

    def admit(self, slots: Int[Tensor, " n"], prompts: list[KeysValues], source: Int[Tensor, " n"]) -> None:
        """Puts row `source[i]` of the prompts' keys and values into slot `slots[i]`."""
        if not self.sides:
            self.sides = [
                (_empty(keys, self.rows, self.length), _empty(values, self.rows, self.length))
                for keys, values in prompts
            ]
        for ours, theirs in zip(self.sides, prompts, strict=True):
            for side, prompt in zip(ours, theirs, strict=True):
                side[slots, :, : prompt.shape[2]] = prompt[source]

    def keep(self, slots: Int[Tensor, " n"]) -> None:
        """Drops every other row."""
        self.rows = len(slots)
        self.sides = [(keys[slots], values[slots]) for keys, values in self.sides]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        assert self.places is not None
        rows, positions = self.places
        keys, values = self.sides[self.first + layer_idx]
        keys[rows, :, positions] = key_states.transpose(1, 2)
        values[rows, :, positions] = value_states.transpose(1, 2)
        return keys, values


def _empty(like: Tensor, rows: int, length: int) -> Tensor:
    # Zeros and not garbage: a masked key still meets the softmax's weight 0, and 0 times NaN is NaN.
    return like.new_zeros(rows, like.shape[1], length, like.shape[3])


class Captured(NamedTuple):
    """A CUDA graph with the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    ids: Int[Tensor, "b t"]
    positions: Int[Tensor, "b t"]
    logits: Float[Tensor, "b v"]


class Slots:
    """A slot cache and the decode step over it."""

    def __init__(self, network: Network, rows: int, length: int, *, graphs: bool) -> None:
        self.network, self.cache = network, SlotCache(rows, length)
        # Rotary tables that grow with the text ask the GPU for the longest position, which no graph can.
        rope = getattr(network.config, "rope_parameters", None) or {}
        kinds = {rope.get("rope_type")} | {part.get("rope_type") for part in rope.values() if isinstance(part, dict)}
        self.graphs = graphs and network.device.type == "cuda" and not kinds & {"dynamic", "longrope"}
        self._captured: dict[tuple[int, tuple[int, ...] | None], Captured | None] = {}

    def keep(self, slots: Int[Tensor, " n"]) -> None:
        self.cache.keep(slots)
        self._captured.clear()

    def step(self, ids: Int[Tensor, "b t"], positions: Int[Tensor, "b t"]) -> Float[Tensor, "b v"]:
        """Logits after `ids`, which stand at `positions` of their rows. A graph's output is overwritten by the next."""
        if not self.graphs:
            return self._step(ids, positions)
        shape = ids.shape[1], self.network.head.tokens
        if shape not in self._captured:
            # The libraries set up their workspaces in a first run, which must not be captured.
            self._captured[shape] = None
            return self._step(ids, positions)
        captured = self._captured[shape]
        if captured is None:
            captured = self._captured[shape] = self._capture(ids.clone(), positions.clone())
        captured.ids.copy_(ids)
        captured.positions.copy_(positions)
        captured.graph.replay()
        return captured.logits

    def _step(self, ids: Int[Tensor, "b t"], positions: Int[Tensor, "b t"]) -> Float[Tensor, "b v"]:
        network, cache = self.network, self.cache
        cache.places = torch.arange(cache.rows, device=network.device)[:, None], positions
        keys = torch.arange(cache.length, device=network.device)[None]
        allowed = keys[:, None, :] <= positions[:, :, None]
        used = (positions[:, -1] + 1).to(torch.int32)
        view = View(allowed, positions, keys, kernel=network.kernel, used=used)
        return network.logits(ids, positions, cache, view, None, ANSWER)

    def _capture(self, ids: Int[Tensor, "b t"], positions: Int[Tensor, "b t"]) -> Captured:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                logits = self._step(ids, positions)
        finally:  # a capture that fails may leave its own stream behind
            torch.cuda.set_stream(stream)
        return Captured(graph, ids, positions, logits)
