"""Tensors as safetensors files that are a function of the tensors alone."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from sublim.files.syncing import sync


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
