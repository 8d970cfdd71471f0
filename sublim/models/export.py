"""Export of a base with trained weights as one Hugging Face directory."""

from itertools import filterfalse
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig

from sublim.files.large_files import copy_each
from sublim.models.files import INDEX, is_adapter, loaded_files, write_config, write_identity
from sublim.models.opening import load
from sublim.models.weights_check import check_weights


def export_merged(out: Path, *, base: Path, weights: Path, name: str = "merged") -> None:
    """Writes base and trained weights as one Hugging Face directory.

    An adapter is merged in float32 on the CPU, and the sum is rounded once to the base's data type. `name` goes into
    the folder's note with the digest of its weights.
    """
    check_weights(base, weights)
    if is_adapter(weights):
        from sublim.models.adapters import merged

        model = merged(load(base, dtype="float32", attention="eager", device="cpu"), weights)
        model.to(dtype=cast(torch.dtype, AutoConfig.from_pretrained(base).dtype))  # pyright: ignore[reportCallIssue]
        model.save_pretrained(out, max_shard_size="5GB")
    else:
        copy_each(weights, filter(_of_weights, loaded_files(weights)), out)
    copy_each(base, filterfalse(_of_weights, loaded_files(base)), out)
    write_config(out)
    write_identity(out, name)


def _of_weights(file: str) -> bool:
    return file in ("config.json", INDEX) or file.endswith(".safetensors")
