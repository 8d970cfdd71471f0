"""Tensors as safetensors files that are a function of the tensors alone, and the wait until a file is on the disk."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def sync(path: Path) -> None:
    """Waits until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as safetensors, in the order of their names."""
    # Through memory: safetensors makes files that only their owner can read, and a store may be shared.
    path.write_bytes(
        save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, {"format": "pt"})
    )


def write_whole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors so that `path` is there whole or not at all."""
    draft = path.with_suffix(".draft")
    write_tensors(draft, tensors)
    sync(draft)
    draft.replace(path)
