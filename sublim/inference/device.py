"""A head start for the GPU: its context is made while the heavy imports run."""

import ctypes
from threading import Thread

from sublim.core.hardware import gpu


def start_context() -> None:
    """Makes the first GPU's primary context, the one torch will use, in a thread: some tenths of a second that need no
    Python and would otherwise come after the imports, the driver's own start included. Does nothing without a GPU.
    """
    Thread(target=_retain, daemon=True).start()


def _retain() -> None:
    if gpu() is None:
        return
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    # A failure is left to torch, which meets it again and names it.
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
