"""Attention over a shared or preallocated cache: any mask, no copies of keys for grouped queries, soft-capping kept.

Registered with transformers under NAME. A model set to NAME makes no mask of its own: the view that a pass is made
under says which keys each query sees.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
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
"""Keywords that models pass along and that change nothing of what an attention function computes."""
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


_view: ContextVar[View] = ContextVar("view")


@contextmanager
def under(view: View) -> Generator[None]:
    """Passes inside attend by `view`. No keyword of the model's: some families hand none on to their layers."""
    token = _view.set(view)
    try:
        yield
    finally:
        _view.reset(token)


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
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " h"] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "b q h d"], None]:
    """One layer's attention, in the form transformers calls it.

    `s_aux` are learnt sinks: a score for each head that takes its share of the softmax and adds nothing to the sum.
    Raises UserError for any other keyword that would change the result.
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
    # The query heads that share a key head become further queries of it: same sums, and the keys are read once.
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
    """The softmax over the keys and, where there are sinks, over one further place that is then left out."""
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    b, g, q, _ = scores.shape
    # The rows of `scores` are the heads that share a key head, one after another, each with all its queries.
    column = sinks.reshape(g, groups, 1).expand(g, groups, q // groups).reshape(1, g, q, 1).expand(b, -1, -1, -1)
    return torch.softmax(torch.cat([scores, column.to(scores.dtype)], -1), dim=-1, dtype=torch.float32)[..., :-1]


def refuse_others(module: nn.Module, given: dict[str, Any]) -> None:
    """Raises UserError where a layer gives its attention something that is not computed here."""
    causal_already = given.pop("is_causal", None) in (None, True)
    given.pop("dropout", None)  # nothing is dropped in evaluation mode, which is all that is computed here
    odd = [name for name, value in given.items() if value is not None and name not in WITHOUT_EFFECT]
    if odd or not causal_already:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        raise UserError(
            f"the layers of {kind} give their attention `{odd[0] if odd else 'is_causal=False'}`, which the hf backend "
            "does not compute: take a base of another family, or vLLM for sampling"
        )


AttentionInterface.register(NAME, attend)
