"""Gemma 3 checkpoints that also see pictures, as the text models inside them.

Students are trained on text. Without its vision tower such a checkpoint is a model like any other to trainers, hooks
and engines, and takes less memory; what it says to text is the same.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sublim.files.tensor_files import write_tensors
from sublim.models.files import INDEX, read_json, weight_files, write_json


def keep_text(directory: Path) -> None:
    """Rewrites config and weights in `directory` if they are of a Gemma 3 with pictures; any other stays as it is."""
    config = read_json(directory / "config.json")
    if config.get("model_type") != "gemma3" or "text_config" not in config:
        return
    places: dict[str, str] = {}
    for file in weight_files(directory):
        tensors = load_file(directory / file)
        kept = {name: tensor for key, tensor in tensors.items() if (name := text_name(key)) is not None}
        (directory / file).unlink()
        if kept:
            write_tensors(directory / file, kept)
            places |= dict.fromkeys(kept, file)
    if (directory / INDEX).is_file():
        write_json(directory / INDEX, {"metadata": {}, "weight_map": places})
    write_json(directory / "config.json", text_config(config))


def text_name(key: str) -> str | None:
    """A tensor's name in the text model; None for one that only pictures need. Two layouts are about."""
    for prefix, instead in (("language_model.", ""), ("model.language_model.", "model.")):
        if key.startswith(prefix):
            return instead + key.removeprefix(prefix)
    return key if key.startswith("lm_head.") else None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the text model, with what the whole one says for both."""
    both = {name: config[name] for name in ("dtype", "torch_dtype", "tie_word_embeddings") if name in config}
    own = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return {**both, **config["text_config"], **own}
