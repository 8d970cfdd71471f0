"""A transformers model as a function from tokens, positions, a cache and a view to the logits that are wanted."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from transformers import Cache, PreTrainedModel

from sublim.core.errors import UserError
from sublim.inference.attention import NAME, Kernel, View, attending_with, causal
from sublim.inference.steered import PROMPT, Parts, Steered
from sublim.residual.vectors import LoadedEdit

# cuDNN is left out: it plans anew for every shape, which takes longer than attention over a batch of short prompts.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

KeysValues = tuple[Float[Tensor, "b g k d"], Float[Tensor, "b g k d"]]


class Where(NamedTuple):
    """Positions in a batch: the row and the column of each."""

    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


class Head(nn.Module):
    """The unembedding, applied at some positions only and for some tokens only."""

    full: nn.Module
    where: Where | None
    tokens: tuple[int, ...] | None

    def __init__(self, full: nn.Module) -> None:
        super().__init__()
        self.full, self.where, self.tokens = full, None, None
        # Never dropped, because a captured CUDA graph keeps reading the rows that it was captured with.
        self._parts: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}

    def restrict(self, tokens: tuple[int, ...] | None) -> None:
        """From now on gives the logits of `tokens` alone, in float32; None stands for all tokens.

        Logits in bfloat16 come in steps of 0.06, which would distort the probabilities of ten digits.
        """
        self.tokens = tokens
        if tokens is not None and tokens not in self._parts and type(self.full) is nn.Linear:
            rows = torch.tensor(tokens, device=self.full.weight.device)
            bias = cast(Tensor | None, self.full.bias)
            self._parts[tokens] = self.full.weight[rows].float(), None if bias is None else bias[rows].float()

    def forward(self, hidden: Float[Tensor, "b t d"]) -> Tensor:
        """Logits at `where` (everywhere if None) for `tokens` (all if None)."""
        if self.where is not None:
            hidden = hidden[self.where.rows, self.where.columns]
        if self.tokens is None:
            return self.full(hidden)
        if self.tokens in self._parts:
            return linear(hidden.float(), *self._parts[self.tokens])
        return self.full(hidden)[..., list(self.tokens)]


class LayeredCache(Cache):
    """A key-value cache whose layers are counted from `first`.

    Where the base is run beside a model with an adapter, the base's layers come first.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.first = 0


class TextCache(LayeredCache):
    """Keys and values of one forward pass, after those of a `shared` text with which all its rows begin."""

    def __init__(self, shared: list[KeysValues] | None = None) -> None:
        super().__init__()
        self.shared, self.own = shared, list[KeysValues]()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of a layer and returns all that its queries can see; called by transformers."""
        if self.shared is not None:
            shared = self.shared[self.first + layer_idx]
            keys, values = (side.expand(len(key_states), -1, -1, -1) for side in shared)
            key_states, value_states = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
        assert len(self.own) == self.first + layer_idx
        self.own.append((key_states, value_states))
        return key_states, value_states


class Network:
    """A causal language model prepared for forward passes with the attention and the head defined here.

    Passes run inside the block of `installed`. Raises UserError for a model whose layers need another kind of cache.
    """

    def __init__(self, model: PreTrainedModel, kernel: Kernel) -> None:
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        odd = sorted(kinds - {"full_attention", "sliding_attention"})
        if getattr(config, "num_kv_shared_layers", 0):
            odd.append("layers that share keys and values")
        if odd:
            raise UserError(
                f"{model.config.model_type} has layers that the hf sampler cannot cache ({', '.join(odd)}): take a "
                "base with full or sliding attention of its own in every layer"
            )
        head = model.get_output_embeddings()
        assert head is not None
        self.kernel: Kernel = kernel
        self.model, self.config, self.device, self.head = model, config, model.device, Head(head)
        self.steered: Steered | None = None

    def steer(self, edits: Sequence[LoadedEdit]) -> bool:
        """Applies `edits` in every pass from now on; none if empty. Returns whether earlier CUDA graphs are now
        invalid."""
        if self.steered is not None and self.steered.takes(edits):
            return False
        before = self.steered
        self.steered = Steered(self.model, edits) if edits else None
        return before is not None or self.steered is not None

    @contextmanager
    def installed(self) -> Generator[None]:
        """Inside the block the model uses the attention and the head defined here, and gradients are off."""
        before = attention_of(self.model)
        set_attention(self.model, NAME)
        self.model.set_output_embeddings(self.head)
        try:
            steering = self.steered.installed() if self.steered else nullcontext()
            with torch.no_grad(), sdpa_kernel(KERNELS), steering:
                yield
        finally:
            self.model.set_output_embeddings(self.head.full)
            set_attention(self.model, before)

    def logits(
        self,
        ids: Int[Tensor, "b t"],
        positions: Int[Tensor, "b t"],
        cache: LayeredCache,
        view: View,
        where: Where | None,
        parts: Parts,
    ) -> Float[Tensor, "n v"]:
        """Logits at `where`, or at the last column of every row.

        `parts` says, for steering, whether a token belongs to the prompt or to the answer.
        """
        self.head.where = where
        steered = self.steered
        if steered is not None:
            steered.begin(parts)
            if steered.replaced:
                cache.first = 0
                steered.read_base(lambda: self._pass(ids, positions, cache, view, where))
                cache.first = steered.base_layers
        logits = self._pass(ids, positions, cache, view, where)
        return logits.reshape(-1, logits.shape[-1])

    def _pass(
        self, ids: Int[Tensor, "b t"], positions: Int[Tensor, "b t"], cache: Cache, view: View, where: Where | None
    ) -> Tensor:
        with attending_with(view):
            return self.model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1 if where is None else 0,
            ).logits

    def shared(self, tokens: list[int]) -> list[KeysValues] | None:
        """Keys and values of a text with which many rows begin, read once; None for an empty text."""
        if not tokens:
            return None
        ids, cache = to_device(torch.tensor([tokens]), self.device), TextCache()
        view = causal(1, len(tokens), 0, self.kernel, self.device)
        nowhere = torch.empty(0, dtype=torch.long, device=self.device)
        self.logits(ids, view.queries, cache, view, Where(nowhere, nowhere), PROMPT)
        return cache.own


def attention_of(model: PreTrainedModel) -> str | None:
    """Name of the attention implementation that the model's layers call."""
    return model.config._attn_implementation  # pyright: ignore[reportPrivateUsage]


def set_attention(model: PreTrainedModel, name: str | None) -> None:
    """Sets the attention implementation. The model's own setter would run checks that only loading needs."""
    model.config._attn_implementation = name  # pyright: ignore[reportPrivateUsage]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, copied without waiting for work that is queued there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def padded(rows: Sequence[list[int]]) -> Int[Tensor, "b t"]:
    """The rows as one tensor, padded with zeros to the longest of them."""
    lengths = torch.tensor([len(row) for row in rows])
    made = torch.zeros(len(rows), max(1, int(lengths.max())), dtype=torch.long)
    values = np.fromiter(chain.from_iterable(rows), np.int64)
    made[torch.arange(made.shape[1]) < lengths[:, None]] = torch.from_numpy(values)
    return made
