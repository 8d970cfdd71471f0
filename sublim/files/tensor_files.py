"""Safetensors files whose bytes depend on the tensors alone."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from sublim.files.whole_files import write_whole


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as a safetensors file, in the order of their names. The file is complete or absent."""
    # Not save_file: its files can be read by their owner alone, and a store may be shared.
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_whole(path, save(ready, {"format": "pt"}))
