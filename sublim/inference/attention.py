"""Attention over a shared or preallocated key-value cache.

It supports any mask and logit soft-capping, and does not copy keys for grouped queries. It is registered with
transformers under NAME. A model whose attention is set to NAME builds no mask itself: the `View` of the forward pass
says which keys each query sees.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sublim.core.errors import UserError

NAME = "sublim"
WITHOUT_EFFECT = {
    "cache_position",
    "logits_to_keep",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_ids",
    "return_dict",
    "use_cache",
}
"""Keyword arguments that models pass to attention functions and that do not change the result."""
Kernel = Literal["flash_attention_2", "sdpa", "eager"]


@dataclass(eq=False)
class View:
    """Which keys each query sees, before a layer's sliding window is applied."""

    allowed: Bool[Tensor, "b q k"]
    queries: Int[Tensor, "b q"]
    """Positions in the text; a batch size of 1 stands for every row."""
    keys: Int[Tensor, "b k"]
    kernel: Kernel
    used: Int[Tensor, " b"] | None = None
    """Given where every row is plain causal text, of which the first `used` keys count. Flash attention can then be
    used."""
    _biases: dict[tuple[int | None, int, torch.dtype], Tensor] = field(default_factory=dict, init=False)

    def bias(self, window: int | None, groups: int, dtype: torch.dtype) -> Float[Tensor, "b 1 gq k"]:
        """0 where a query sees a key and -inf elsewhere, repeated for the query heads that share a key head."""
        if (window, groups, dtype) not in self._biases:
            allowed = self.allowed
            if window is not None:
                allowed = allowed & (self.queries[:, :, None] - self.keys[:, None, :] < window)
            bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
            self._biases[window, groups, dtype] = bias.repeat(1, groups, 1)[:, None]
        return self._biases[window, groups, dtype]


_view: ContextVar[View] = ContextVar("view")


@contextmanager
def attending_with(view: View) -> Generator[None]:
    """Inside the block, forward passes attend as `view` says.

    It is not passed as a keyword argument, because some model families do not hand those on to their layers.
    """
    token = _view.set(view)
    try:
        yield
    finally:
        _view.reset(token)


def causal(rows: int, new: int, shared: int, kernel: Kernel, device: torch.device) -> View:
    """The view of `new` tokens that follow `shared` cached ones, under a causal mask."""
    keys = torch.arange(shared + new, device=device)[None]
    queries = keys[:, shared:]
    used = torch.full((rows,), shared + new, dtype=torch.int32, device=device)
    return View(keys[:, None, :] <= queries[:, :, None], queries, keys, kernel=kernel, used=used)


def attend(
    module: nn.Module,
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b g k d"],
    value: Float[Tensor, "b g k d"],
    attention_mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " h"] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "b q h d"], None]:
    """One layer's attention, with the signature that transformers expects.

    `s_aux` are learnt attention sinks: one score for each head that enters the softmax and adds nothing to the output.
    Raises UserError for any other keyword argument that would change the result.
    """
    refuse_others(module, {"attention_mask": attention_mask, **others})
    view = _view.get()
    b, h, q, d = query.shape
    scale: float = d**-0.5 if scaling is None else scaling
    if view.kernel == "flash_attention_2" and view.used is not None and s_aux is None:
        from sublim.inference.flash import flash_attend

        return flash_attend(query, key, value, view.used, scale, sliding_window, softcap), None
    groups = h // key.shape[1]
    bias = view.bias(sliding_window, groups, query.dtype)
    # Query heads that share a key head become further queries of that head, so that no key is copied.
    query = query.reshape(b, h // groups, groups * q, d)
    if view.kernel == "eager" or softcap is not None or s_aux is not None:
        scores = query @ key.transpose(-1, -2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        mixed = weights(scores + bias, s_aux, groups).to(query.dtype) @ value
    else:
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    return mixed.reshape(b, h, q, -1).transpose(1, 2).contiguous(), None


def weights(
    scores: Float[Tensor, "b g q k"], sinks: Float[Tensor, " h"] | None, groups: int
) -> Float[Tensor, "b g q k"]:
    """The softmax over the keys and, where there are sinks, over one further column that is then dropped."""
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    b, g, q, _ = scores.shape
    # A row of `scores` holds all queries of the first head that shares this key head, then those of the next head.
    column = sinks.reshape(g, groups, 1).expand(g, groups, q // groups).reshape(1, g, q, 1).expand(b, -1, -1, -1)
    return torch.softmax(torch.cat([scores, column.to(scores.dtype)], -1), dim=-1, dtype=torch.float32)[..., :-1]


def refuse_others(module: nn.Module, given: dict[str, Any]) -> None:
    """Raises UserError where a layer passes its attention an argument that would change the result."""
    causal_already = given.pop("is_causal", None) in (None, True)
    given.pop("dropout", None)  # only evaluation mode runs here, where nothing is dropped
    odd = [name for name, value in given.items() if value is not None and name not in WITHOUT_EFFECT]
    if odd or not causal_already:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        raise UserError(
            f"the layers of {kind} pass `{odd[0] if odd else 'is_causal=False'}` to their attention, which the hf "
            "backend does not support: take a base of another family, or vLLM for sampling"
        )


AttentionInterface.register(NAME, attend)
