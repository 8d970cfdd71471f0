"""Recognising errors that say that memory ran out, from any library. Does not import torch."""

from sublim.core.errors import chain

WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUFFT_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
)


def names_memory(kind: str, message: str) -> bool:
    """Whether an error's class name or its message says that memory ran out."""
    return kind.endswith("MemoryError") or any(words in message for words in WORDS)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that it was raised from or while handling, says that memory ran out.

    The whole chain is checked: if memory runs out while a CUDA graph is captured, the last error is about the capture.
    """
    return any(names_memory(type(each).__name__, str(each)) for each in chain(error))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the allocator's advice about its settings."""
    return str(error).partition("\n")[0].partition(" If reserved but unallocated")[0].strip() or type(error).__name__
