"""Creates the GPU's CUDA context in the background while large modules are imported."""

import ctypes
from threading import Thread

from sublim.core.hardware import gpu


def start_context() -> None:
    """Creates the primary context of the first GPU, which torch will use, in a thread. Does nothing without a GPU.

    It takes some tenths of a second, needs no Python, and would otherwise run after the imports.
    """
    Thread(target=_retain, daemon=True).start()


def _retain() -> None:
    if gpu() is None:
        return
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    # Errors are ignored: torch will meet the same error and report it.
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
