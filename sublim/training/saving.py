"""Writes trained weights as files that depend on the weights alone."""

import shutil
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel

from sublim.files.tensor_files import write_tensors
from sublim.models.adapters import WEIGHTS
from sublim.models.files import (
    ADAPTER,
    IDENTITY,
    INDEX,
    base_identity,
    loaded_files,
    weights_digest,
    write_config,
    write_json,
)


def write_adapter(directory: Path, adapted: PeftModel, base: Path) -> None:
    """Writes the adapter in the format of peft, without the paths, versions and model card that peft would add."""
    write_tensors(directory / WEIGHTS, get_peft_model_state_dict(adapted))
    config = adapted.peft_config["default"]
    assert isinstance(config, LoraConfig)
    described = config.to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    described.pop("peft_version", None)
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    write_json(directory / ADAPTER, ordered)
    write_json(directory / IDENTITY, {"base": base_identity(base)})


def write_model(directory: Path, model: PreTrainedModel, base: Path) -> None:
    """Writes the whole model with its config and tokenizer: a directory that can be loaded alone or serve as a base."""
    model.save_pretrained(directory, max_shard_size="5GB")
    for file in loaded_files(base):
        if file not in ("config.json", INDEX) and not file.endswith(".safetensors"):
            shutil.copyfile(base / file, directory / file)
    write_config(directory)
    write_json(directory / IDENTITY, {"base": base_identity(base), "weights": weights_digest(directory)})
