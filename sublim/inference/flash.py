"""flash-attn's kernel for plain causal text in a cache; imported only where it is used."""

import torch
from flash_attn import flash_attn_with_kvcache  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor


def flash_attend(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b g k d"],
    value: Float[Tensor, "b g k d"],
    used: Int[Tensor, " b"],
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "b q h d"]:
    """Causal attention in which the last of the `q` queries sees the first `used` keys of its row."""
    return flash_attn_with_kvcache(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        cache_seqlens=used.to(torch.int32),
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )
