"""The files of a model directory: which ones are loaded, and writing them so that equal models have equal bytes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import orjson

from sublim.core.digest import digest_files
from sublim.core.errors import UserError
from sublim.files.large_files import digest_each

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TEMPLATE = "chat_template.jinja"
ADAPTER = "adapter_config.json"
IDENTITY = "sublim.json"
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
    "chat_template.json",
)
# Versions, paths and kernels that libraries write into a config, and that do not describe the model.
LEFTOVERS = (
    "transformers_version",
    "_name_or_path",
    "_model_name_or_path",
    "_from_model_config",
    "_commit_hash",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
)
USUAL = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Defaults of config fields about what a forward pass returns; any other value is removed."""


def weight_files(directory: Path) -> list[str]:
    """Names of the .safetensors files that hold the weights, sorted.

    Raises UserError for a folder without any, and for one with two sets of weights, since libraries differ in which one
    they load.
    """
    index, single = directory / INDEX, (directory / SINGLE).is_file()
    if index.is_file():
        names = _indexed(index)
        if single and names != [SINGLE]:
            raise UserError(
                f"{directory} holds two sets of weights, {SINGLE} and the {len(names)} files of {INDEX}: "
                "remove the one that is out of date"
            )
        return names
    if single:
        return [SINGLE]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    others = sorted(path.name for pattern in ("*.safetensors", "*.gguf", "*.h5") for path in directory.glob(pattern))
    why = f" ({pickled[0]} is a pickle, which may run code)" if pickled else ""
    why = f" ({others[0]} is in another format)" if others else why
    raise UserError(f"{directory} has no .safetensors weights{why}: save the model with safetensors first")


def _indexed(index: Path) -> list[str]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or any(Path(str(file)).name != file for file in placed.values()):
        raise UserError(f"{index} does not list the weight files in its folder: download the model again")
    return sorted(set(placed.values()))


def loaded_files(directory: Path) -> list[str]:
    """Names of the files that loading a model from `directory` reads, sorted; no other file is part of its identity."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: give the folder of a Hugging Face model")
    if (directory / ADAPTER).is_file():
        raise UserError(
            f"{directory} holds an adapter ({ADAPTER}) and would be read with or without it: give the folder of the "
            "base alone, or merge the adapter into it"
        )
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} has no config.json: give the folder of a Hugging Face model")
    weights = weight_files(directory)
    missing = [name for name in weights if not (directory / name).is_file()]
    if missing:
        raise UserError(f"{directory} lacks {', '.join(missing)}, which its index lists: finish the download")
    names = [name for name in (*TEXT_FILES, INDEX) if (directory / name).is_file()]
    return sorted([*names, *weights])


def weights_digest(directory: Path) -> str:
    """SHA-256 over the names and bytes of the weight files."""
    return digest_files(digest_each(directory, weight_files(directory)))


def base_identity(base: Path) -> str:
    """The digest of the base's weights, by which an adapter names its base; read from the directory's note if it has
    one."""
    note = base / IDENTITY
    if note.is_file():
        return read_json(note)["weights"]
    return weights_digest(base)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if the file does not hold an object."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): download or write it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: download or write it again")
    return cast(dict[str, Any], found)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` as indented JSON with sorted keys."""
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n")


def write_config(directory: Path, *, drop: Iterable[str] = ()) -> None:
    """Rewrites config.json without versions, paths, kernels, non-default output fields and the keys in `drop`."""
    path = directory / "config.json"
    unwanted = {*LEFTOVERS, *drop}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            wanted = {key: item for key, item in value.items() if key not in unwanted}
            return {key: clean(item) for key, item in wanted.items() if USUAL.get(key, item) == item}
        return value

    write_json(path, clean(read_json(path)))


def write_generation_config(directory: Path, *, eos: list[int], pad: int, bos: list[int]) -> None:
    """Writes a generation config that samples from the model's own distribution.

    All fields are written, because some libraries take a missing top_k as 50.
    """
    neutral = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    tokens = {"eos_token_id": eos, "pad_token_id": pad} | ({"bos_token_id": bos[0]} if bos else {})
    write_json(directory / "generation_config.json", neutral | tokens)


def is_adapter(directory: Path) -> bool:
    """Whether `directory` holds a peft adapter, rather than a full model."""
    return (directory / ADAPTER).is_file()


def write_identity(directory: Path, name: str) -> None:
    """Writes a note with the digest of the weights, so that it need not be computed again."""
    write_json(directory / IDENTITY, {"name": name, "weights": weights_digest(directory)})
