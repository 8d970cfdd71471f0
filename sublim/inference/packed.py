"""Linear layers with weights packed for oneDNN: float32 matrix products on a CPU take three quarters of MKL's time.

torch packs weights only in models that it compiles, and compiling takes longer than the passes it would speed up here.
Packing costs a copy of the weights. It changes the order of summation, so results differ by rounding.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

LIMIT = 2**30
"""Bytes of weights above which nothing is packed."""


@contextmanager
def packed(blocks: Iterable[nn.Module]) -> Generator[None]:
    """Inside the block the linear layers of `blocks` are packed where that helps: in float32 on an x86 CPU."""
    linears = [module for block in blocks for module in block.modules() if type(module) is nn.Linear]
    weights = [module.weight for module in linears]
    suits = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if not (suits and wide and torch.backends.mkldnn.is_available()) or sum(w.nbytes for w in weights) > LIMIT:
        yield
        return
    for module in linears:
        weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
        module.__dict__["forward"] = partial(_linear, weight, module.bias)
    try:
        yield
    finally:
        for module in linears:
            del module.__dict__["forward"]  # the method of the class is visible again


def _linear(weight: Tensor, bias: Tensor | None, hidden: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
