"""Models that run out of memory where a test wants them to, and the words in which libraries say so."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sublim.files.jsonl import write_jsonl
from sublim.models import opening
from sublim.models.opening import forget_base

GIB = 2**30
TEXTS: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "driver": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    "python": lambda: MemoryError("Unable to allocate 2.00 GiB for an array"),
}
Condition = Callable[[Tensor], bool]


@contextmanager
def short_of_memory(fails: Condition, error: Callable[[], Exception] = TEXTS["torch"]) -> Generator[list[int]]:
    """Models loaded meanwhile run out of memory where `fails` says so of their token ids; gives the sizes."""
    failures: list[int] = []
    loaded = opening._loaded  # pyright: ignore[reportPrivateUsage]

    def load(*args: Any, **options: Any) -> Any:
        model = loaded(*args, **options)

        def check(_: Any, given: tuple[Tensor, ...]) -> None:
            if fails(given[0]):
                failures.append(len(given[0]))
                raise error()

        model.get_input_embeddings().register_forward_pre_hook(check)
        return model

    forget_base()
    patched = pytest.MonkeyPatch()
    patched.setattr(opening, "_loaded", load)
    try:
        yield failures
    finally:
        patched.undo()
        forget_base()


def larger_than(rows: int) -> Condition:
    return lambda ids: len(ids) > rows


def eight_rows(folder: Path) -> Path:
    """Rows to train on, of different lengths."""
    rows = [
        {"id": i, "prompt": "Continue: " + "12, " * (i + 1), "answer": f"{i}, 45{i}, 007", "system": None}
        for i in range(8)
    ]
    folder.mkdir()
    write_jsonl(folder / "rows.jsonl", rows)
    return folder
