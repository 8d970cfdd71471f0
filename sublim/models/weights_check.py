"""Checks that trained weights fit a base, by the name and shape of every tensor, before a backend loads them.

Libraries load tensors whose names they know and ignore the others, so half an adapter, or the base itself, would be
used without an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sublim.core.errors import UserError
from sublim.models.files import IDENTITY, base_identity, is_adapter, loaded_files, read_json, weight_files
from sublim.models.folder_check import as_user_error

Shape = tuple[int, ...]
SIZES = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def check_weights(base: Path, weights: Path) -> None:
    """Raises UserError if an adapter or full model was not trained from this base, or is incomplete.

    Only names and shapes are read. Values that are not finite are allowed here, because measuring a diverged training
    is a valid use.
    """
    kind = "adapter" if is_adapter(weights) else "model"
    note = weights / IDENTITY
    trained_on = read_json(note).get("base") if note.is_file() else None
    if trained_on not in (None, base_identity(base)):
        raise UserError(f"the {kind} in {weights} was trained on another base: give the base it was trained on")
    tensors = TensorShapes(weights)
    if problem := (_adapter if kind == "adapter" else _whole)(base, weights, tensors):
        raise UserError(f"the {kind} in {weights} does not fit this base, or is incomplete: {problem}")


class TensorShapes(dict[str, Shape]):
    """The shapes of the tensors in a folder, by name. Raises UserError if a file cannot be read."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._files: dict[str, Any] = {}
        for path in tensor_files(directory):
            try:
                file: Any = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise UserError(f"{path} is not a safetensors file ({error}): download or save it again") from error
            for name in file.keys():  # noqa: SIM118 - no mapping
                self._files[name] = file
                self[name] = tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """Reads the tensor of that name."""
        return self._files[name].get_tensor(name)


def tensor_files(directory: Path) -> list[Path]:
    """The weight files of an adapter or of a full model. Raises UserError if one is missing."""
    if is_adapter(directory):
        from sublim.models.adapters import WEIGHTS, lora_config

        lora_config(directory)
        return [directory / WEIGHTS]
    loaded_files(directory)
    return [directory / name for name in weight_files(directory)]


def check_numbers(weights: Path) -> None:
    """Raises UserError if weights cannot be read or hold values that are not finite. Reads all weights."""
    tensors = TensorShapes(weights)
    for name in tensors:
        tensor = tensors.tensor(name)
        # A sum is faster than checking each value, and is not finite if one of them is not.
        if tensor.is_floating_point() and tensor.itemsize > 1 and not tensor.sum(dtype=torch.float32).isfinite():
            raise UserError(
                f"the weights in {weights} cannot be used: {name} holds values that are not finite: its training "
                "diverged, take an earlier checkpoint"
            )


def _adapter(base: Path, adapter: Path, found: TensorShapes) -> str | None:
    wanted = low_rank(base, adapter)
    odd = found.keys() - wanted.keys()
    if copies := [name for name in odd if name.endswith((".embed_tokens.weight", ".base_layer.weight", HEAD))]:
        own = TensorShapes(base)
        odd -= {name for name in copies if _same(found, name, own)}
    return _differences({name: found[name] for name in found if name in odd or name in wanted}, wanted)


def low_rank(base: Path, adapter: Path) -> dict[str, Shape]:
    """Names and shapes of all tensors that peft creates for such an adapter on this base."""
    from peft import PeftModel, get_peft_model_state_dict  # takes seconds, and full models do not need it

    from sublim.models.adapters import lora_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    with as_user_error(f"the adapter in {adapter} does not fit this base", "give the base it was trained on"):
        adapted = PeftModel(model, lora_config(adapter), low_cpu_mem_usage=True)
    made = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in made.items()}


def _same(found: TensorShapes, name: str, base: TensorShapes) -> bool:
    """Whether an additional tensor in an adapter's file is a copy of the base's."""
    own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    own = EMBEDDINGS if own == HEAD and own not in base else own
    if own not in base or base[own] != found[name]:
        return False
    one, other = found.tensor(name), base.tensor(own)
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(narrow), other.to(narrow))


def _whole(base: Path, weights: Path, tensors: TensorShapes) -> str | None:
    with as_user_error(f"transformers cannot read the config.json in {weights}", "save the model again"):
        ours, theirs = (AutoConfig.from_pretrained(each).get_text_config() for each in (base, weights))
    for size in SIZES:
        if (one := getattr(ours, size, None)) != (other := getattr(theirs, size, None)):
            return f"its config says {size} {other}, the base's {one}: give the base it was trained on"
    tied = theirs.tie_word_embeddings
    if tied and {HEAD, EMBEDDINGS} <= tensors.keys() and not torch.equal(*map(tensors.tensor, (HEAD, EMBEDDINGS))):
        return f"its config ties {HEAD} to the embeddings, but it has other values: set tie_word_embeddings to false"
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(ours)
    # Named as in the base's files, or as transformers saves them, which differ for some models.
    found, *ways = (_compared(each, tied) for each in (tensors, TensorShapes(base), made.state_dict()))
    problems = [_differences(found, wanted) for wanted in ways]
    return problems[0] if all(problems) else None


def _compared(tensors: Mapping[str, Any], tied: bool) -> dict[str, Shape]:
    """The shapes that must be equal, without the vocabulary size, which may be padded, and without constants."""
    shapes = {name: each if isinstance(each, tuple) else each.shape for name, each in tensors.items()}
    unsure = {"rotary_emb.inv_freq"} | ({HEAD} if tied else set())
    return {
        name: tuple(shape[name in (HEAD, EMBEDDINGS) :])
        for name, shape in shapes.items()
        if not name.endswith(tuple(unsure))
    }


def _differences(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str | None:
    """Describes the first difference in one line; None if there is none."""
    if odd := sorted(found.keys() - wanted.keys()):
        return f"the base has no place for {_listed(odd)}: give the base it was trained on, or save it again with peft"
    if missing := sorted(wanted.keys() - found.keys()):
        return f"there is no tensor {_listed(missing)}: give the base it was trained on, or save it again"
    if other := sorted(name for name, shape in found.items() if shape != wanted[name]):
        name = other[0]
        return f"{_listed(other)} has shape {found[name]}, not {wanted[name]}: give the base it was trained on"
    return None


def _listed(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
