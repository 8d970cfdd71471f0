"""Attention over a shared or preallocated cache: any mask, no copies of keys for grouped queries, soft-capping kept.

Registered with transformers under NAME. A model set to NAME makes no mask of its own; it hands the `view` keyword of
its forward pass on to the attention of every layer, and the view says which keys each query sees.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "sublim"
Kernel = Literal["flash_attention_2", "sdpa", "eager"]


class View:
    """Which keys each query sees, before a layer's sliding window narrows it."""

    def __init__(
        self,
        allowed: Bool[Tensor, "b q k"],
        queries: Int[Tensor, "b q"],
        keys: Int[Tensor, "b k"],
        *,
        kernel: Kernel,
        used: Int[Tensor, " b"] | None = None,
    ) -> None:
        """`queries` and `keys` are positions in the text; a `b` of 1 stands for every row.

        `used`: rows are plain causal text whose first `used` keys count, so that flash attention can serve them.
        """
        self.kernel: Kernel = kernel
        self.allowed, self.queries, self.keys, self.used = allowed, queries, keys, used
        self._biases: dict[tuple[int | None, int, torch.dtype], Tensor] = {}

    def bias(self, window: int | None, groups: int, dtype: torch.dtype) -> Float[Tensor, "b 1 gq k"]:
        """0 where a query sees a key and -inf elsewhere, repeated for the query heads that share a key head."""
        if (window, groups, dtype) not in self._biases:
            allowed = self.allowed
            if window is not None:
                allowed = allowed & (self.queries[:, :, None] - self.keys[:, None, :] < window)
            bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
            self._biases[window, groups, dtype] = bias.repeat(1, groups, 1)[:, None]
        return self._biases[window, groups, dtype]


def causal(rows: int, new: int, shared: int, kernel: Kernel, device: torch.device) -> View:
    """`new` tokens in a row after `shared` cached ones."""
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
    scaling: float,
    view: View,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "b q h d"], None]:
    """One layer's attention, in the form transformers calls it."""
    if view.kernel == "flash_attention_2" and view.used is not None:
        from sublim.inference.flash import flash_attend

        return flash_attend(query, key, value, view.used, scaling, sliding_window, softcap), None
    b, h, q, d = query.shape
    groups = h // key.shape[1]
    bias = view.bias(sliding_window, groups, query.dtype)
    # The query heads that share a key head become further queries of it: same sums, and the keys are read once.
    query = query.reshape(b, h // groups, groups * q, d)
    if view.kernel == "eager" or softcap is not None:
        scores = query @ key.transpose(-1, -2) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        mixed = torch.softmax(scores + bias, dim=-1, dtype=torch.float32).to(query.dtype) @ value
    else:
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    return mixed.reshape(b, h, q, -1).transpose(1, 2), None


AttentionInterface.register(NAME, attend)
