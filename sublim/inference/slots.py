"""The rows of batched decoding: a preallocated cache in which every row has its own length, and the decoding step.

On a GPU the step is replayed as a CUDA graph, because launching its thousand small kernels one by one takes longer than
running them. The preallocated cache gives all steps one shape, which a graph needs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim.inference.attention import View
from sublim.inference.network import KeysValues, LayeredCache, Network
from sublim.inference.steered import ANSWER


class SlotCache(LayeredCache):
    """Keys and values of `rows` texts of different lengths, each of at most `length` tokens."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.rows, self.length, self.sides = rows, length, list[KeysValues]()
        self.places: tuple[Int[Tensor, "b 1"], Int[Tensor, "b t"]] | None = None

    @property
    def bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.sides)

    def admit(self, slots: Int[Tensor, " n"], prompts: list[KeysValues], source: Int[Tensor, " n"]) -> None:
        """Copies row `source[i]` of the prompts' keys and values, given by layer, into slot `slots[i]`."""
        if not self.sides:
            self.sides = [
                (_empty(keys, self.rows, self.length), _empty(values, self.rows, self.length))
                for keys, values in prompts
            ]
        for ours, theirs in zip(self.sides, prompts, strict=True):
            for side, prompt in zip(ours, theirs, strict=True):
                side[slots, :, : prompt.shape[2]] = prompt[source]

    def keep(self, slots: Int[Tensor, " n"]) -> None:
        """Keeps these rows and drops all others."""
        self.rows = len(slots)
        self.sides = [(keys[slots], values[slots]) for keys, values in self.sides]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of a layer and returns all that its queries can see; called by transformers."""
        assert self.places is not None
        rows, positions = self.places
        keys, values = self.sides[self.first + layer_idx]
        keys[rows, :, positions] = key_states.transpose(1, 2)
        values[rows, :, positions] = value_states.transpose(1, 2)
        return keys, values


def _empty(like: Tensor, rows: int, length: int) -> Tensor:
    # Not uninitialised memory: a masked value is multiplied by the weight 0, and 0 times NaN is NaN.
    return like.new_zeros(rows, like.shape[1], length, like.shape[3])


class Captured(NamedTuple):
    """A captured CUDA graph with the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    ids: Int[Tensor, "b t"]
    positions: Int[Tensor, "b t"]
    logits: Float[Tensor, "b v"]


class DecodeSlots:
    """A cache with one slot for each text that is being decoded, and the decoding step over all slots."""

    def __init__(self, network: Network, rows: int, length: int, *, graphs: bool) -> None:
        self.network, self.cache = network, SlotCache(rows, length)
        # These rotary embeddings depend on the largest position and read it from the GPU, which a graph cannot do.
        rope = getattr(network.config, "rope_parameters", None) or {}
        kinds = {rope.get("rope_type")} | {part.get("rope_type") for part in rope.values() if isinstance(part, dict)}
        self.graphs = graphs and network.device.type == "cuda" and not kinds & {"dynamic", "longrope"}
        self._captured: dict[tuple[int, tuple[int, ...] | None], Captured | None] = {}

    def keep(self, slots: Int[Tensor, " n"]) -> None:
        """Keeps these slots and drops all others, and with them the captured graphs."""
        self.cache.keep(slots)
        self._captured.clear()

    def step(self, ids: Int[Tensor, "b t"], positions: Int[Tensor, "b t"]) -> Float[Tensor, "b v"]:
        """Logits after `ids`, which are at `positions` of their rows. The next call may overwrite the result."""
        if not self.graphs:
            return self._step(ids, positions)
        shape = ids.shape[1], self.network.head.tokens
        if shape not in self._captured:
            # Libraries allocate their workspaces in the first run, which must not be captured.
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
        finally:  # a failed capture may leave its stream as the current one
            torch.cuda.set_stream(stream)
        return Captured(graph, ids, positions, logits)
