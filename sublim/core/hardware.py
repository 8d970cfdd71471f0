"""The devices of this machine. The CUDA driver is asked directly, so that torch is not imported."""

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple


class Gpu(NamedTuple):
    """A CUDA device: name, memory in bytes, compute capability."""

    name: str
    memory: int
    capability: tuple[int, int]


@cache
def gpu_count() -> int:
    """How many CUDA devices CUDA_VISIBLE_DEVICES leaves visible."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return 0 if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) else count.value


@cache
def gpu() -> Gpu | None:
    """The first CUDA device that CUDA_VISIBLE_DEVICES leaves visible, or None."""
    if not gpu_count():
        return None
    cuda = ctypes.CDLL("libcuda.so.1")
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name.value.decode(), memory.value, (major.value, minor.value))


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 products, which are two to three times as fast as float32."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(described.split()))


@contextmanager
def peak_gpu_memory() -> Generator[dict[str, int]]:
    """Sets `peak_gpu_bytes` in the given dict to the most GPU memory that torch reserved during the block.

    Does nothing where torch uses no GPU, and does not import torch. Not counted are other processes and what CUDA
    itself keeps for a process (about 0.5 GB).
    """
    found: dict[str, int] = {}
    if torch := _torch_on_gpu():
        torch.cuda.reset_peak_memory_stats()
    yield found
    if torch := _torch_on_gpu():
        found["peak_gpu_bytes"] = torch.cuda.max_memory_reserved()


def _torch_on_gpu() -> Any:
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized() else None


AMPERE = (8, 0)
"""The first compute capability with bfloat16 units, and the first that flash-attention supports."""
VOLTA = (7, 0)
"""The first compute capability that unsloth's kernels support."""


def no_flash(dtype: str) -> str | None:
    """Why flash-attention cannot be used here with weights of this dtype; None if it can."""
    card = gpu()
    if card is None:
        return "it needs an NVIDIA GPU"
    if card.capability < AMPERE:
        return f"it needs compute capability 8.0, {card.name} has {card.capability[0]}.{card.capability[1]}"
    if dtype != "bfloat16":
        return f"it has no {dtype} kernels, only bfloat16"
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed (see `sublim doctor`)"
    return None
