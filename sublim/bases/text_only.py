"""Reduction of multimodal Gemma 3 checkpoints to the text models in them.

Students are trained on text. Without its vision tower such a checkpoint works like any other model with trainers, hooks
and engines, and needs less memory. Its outputs for text are the same.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sublim.files.tensor_files import write_tensors
from sublim.models.files import INDEX, read_json, weight_files, write_json


def keep_text(directory: Path) -> None:
    """Rewrites config and weights in `directory` if the model is a multimodal Gemma 3; changes no other model."""
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
    """A tensor's name in the text model; None for a tensor used only for images. Two layouts of names are in use."""
    for prefix, instead in (("language_model.", ""), ("model.language_model.", "model.")):
        if key.startswith(prefix):
            return instead + key.removeprefix(prefix)
    return key if key.startswith("lm_head.") else None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the text model, with the fields that the multimodal config has for both parts."""
    both = {name: config[name] for name in ("dtype", "torch_dtype", "tie_word_embeddings") if name in config}
    own = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return {**both, **config["text_config"], **own}
