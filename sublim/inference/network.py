"""The model as a function: tokens, positions, a cache and a view in, logits out, only where they are wanted."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from transformers import Cache, PreTrainedModel

from sublim.core.errors import UserError
from sublim.inference.attention import NAME, Kernel, View, causal, under
from sublim.inference.steered import PROMPT, Parts, Steered
from sublim.residual.vectors import LoadedEdit

# Not cuDNN's: it plans anew for every shape, which takes longer than the attention of a batch of short prompts.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

KeysValues = tuple[Float[Tensor, "b g k d"], Float[Tensor, "b g k d"]]


class Where(NamedTuple):
    """Places in a batch: row by row, column by column."""

    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


class Head(nn.Module):
    """The output embedding, applied at some places only, and for some tokens only."""

    full: nn.Module
    where: Where | None
    tokens: tuple[int, ...] | None

    def __init__(self, full: nn.Module) -> None:
        super().__init__()
        self.full, self.where, self.tokens = full, None, None
        # Kept for good: a captured CUDA graph goes on reading the rows it was captured with.
        self._parts: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}

    def restrict(self, tokens: tuple[int, ...] | None) -> None:
        """Logits of `tokens` alone from now on, in float32 (bfloat16's steps of .06 would show in ten digits' odds)."""
        self.tokens = tokens
        if tokens is not None and tokens not in self._parts and type(self.full) is nn.Linear:
            rows = torch.tensor(tokens, device=self.full.weight.device)
            bias = cast(Tensor | None, self.full.bias)
            self._parts[tokens] = self.full.weight[rows].float(), None if bias is None else bias[rows].float()

    def forward(self, hidden: Float[Tensor, "b t d"]) -> Tensor:
        if self.where is not None:
            hidden = hidden[self.where.rows, self.where.columns]
        if self.tokens is None:
            return self.full(hidden)
        if self.tokens in self._parts:
            return linear(hidden.float(), *self._parts[self.tokens])
        return self.full(hidden)[..., list(self.tokens)]


class LayeredCache(Cache):
    """A cache whose layers are counted from `first`: a base that is read beside an adapted model has its own first."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.first = 0


class TextCache(LayeredCache):
    """Keys and values of one pass, after those of a text that all its rows begin with."""

    def __init__(self, shared: list[KeysValues] | None = None) -> None:
        super().__init__()
        self.shared, self.own = shared, list[KeysValues]()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if self.shared is not None:
            shared = self.shared[self.first + layer_idx]
            keys, values = (side.expand(len(key_states), -1, -1, -1) for side in shared)
            key_states, value_states = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
        assert len(self.own) == self.first + layer_idx
        self.own.append((key_states, value_states))
        return key_states, value_states


class Network:
    """A causal language model, opened up for our own passes; see `installed`."""

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
        """Makes `edits` in every pass from now on, none when empty; true where graphs captured before are void."""
        if self.steered is not None and self.steered.takes(edits):
            return False
        before = self.steered
        self.steered = Steered(self.model, edits) if edits else None
        return before is not None or self.steered is not None

    @contextmanager
    def installed(self) -> Generator[None]:
        """Our attention and our head in the model, for the length of the block, and no gradients."""
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
        """Logits at `where`, or at the last column of every row; `parts` says to steering which token is what."""
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
        with under(view):
            return self.model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1 if where is None else 0,
            ).logits

    def shared(self, tokens: list[int]) -> list[KeysValues] | None:
        """Keys and values of a text that many rows begin with."""
        if not tokens:
            return None
        ids, cache = sent(torch.tensor([tokens]), self.device), TextCache()
        view = causal(1, len(tokens), 0, self.kernel, self.device)
        nowhere = torch.empty(0, dtype=torch.long, device=self.device)
        self.logits(ids, view.queries, cache, view, Where(nowhere, nowhere), PROMPT)
        return cache.own


def attention_of(model: PreTrainedModel) -> str | None:
    """Name of the attention that the model's layers call."""
    return model.config._attn_implementation  # pyright: ignore[reportPrivateUsage]


def set_attention(model: PreTrainedModel, name: str | None) -> None:
    """Makes the layers call another. The model's own setter would first check what only loading needs."""
    model.config._attn_implementation = name  # pyright: ignore[reportPrivateUsage]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for what the device has still to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
