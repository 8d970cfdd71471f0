"""Export of a base with trained weights as one Hugging Face directory."""

import shutil
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig

from sublim.models.files import INDEX, is_adapter, loaded_files, write_config, write_identity
from sublim.models.opening import load
from sublim.models.weights_check import check_weights


def export_merged(out: Path, *, base: Path, weights: Path) -> None:
    """Writes base and trained weights as one Hugging Face directory.

    An adapter is merged in float32 on the CPU, and the sum is rounded once to the base's data type.
    """
    check_weights(base, weights)
    if is_adapter(weights):
        from sublim.models.adapters import merged

        model = merged(load(base, dtype="float32", attention="eager", device="cpu"), weights)
        model.to(dtype=cast(torch.dtype, AutoConfig.from_pretrained(base).dtype))  # pyright: ignore[reportCallIssue]
        model.save_pretrained(out, max_shard_size="5GB")
    else:
        for file in loaded_files(weights):
            if file in ("config.json", INDEX) or file.endswith(".safetensors"):
                shutil.copyfile(weights / file, out / file)
    for file in loaded_files(base):
        if file not in ("config.json", INDEX) and not file.endswith(".safetensors"):
            shutil.copyfile(base / file, out / file)
    write_config(out)
    write_identity(out, "merged")
