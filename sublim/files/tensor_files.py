"""Tensors as safetensors files that are a function of the tensors alone."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from sublim.files.whole_files import write_whole


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors, in the order of their names. The file is complete or absent."""
    # Through memory: safetensors makes files that only their owner can read, and a store may be shared.
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_whole(path, save(ready, {"format": "pt"}))
