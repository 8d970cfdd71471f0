"""Whether an error says that memory ran out, whatever library raised it. Needs no torch."""

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
    """Whether memory ran out, in this error or in one that it was raised over: a CUDA graph whose capture ran out of
    memory also ends with an error about the capture.
    """
    return any(names_memory(type(each).__name__, str(each)) for each in chain(error))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without what allocators go on to say about their settings."""
    return str(error).partition("\n")[0].partition(" If reserved but unallocated")[0].strip() or type(error).__name__
