"""LoRA adapters: put into a model's own modules for the time of a block, or merged into its weights for good."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sublim.errors import UserError
from sublim.model_files import ADAPTER, read_json

WEIGHTS = "adapter_model.safetensors"


@contextmanager
def attached(model: PreTrainedModel, directory: Path) -> Generator[None]:
    """Inside the block `model` computes with the adapter; modules keep their names, and the weights are not touched.

    If this raises before the block begins, `model` may be half changed and must be thrown away.
    """
    adapted = inject(model, directory)
    try:
        yield
    finally:
        adapted.unload()


def merged(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """`model` with the adapter added into its weights, for good."""
    result = inject(model, directory).merge_and_unload(safe_merge=True)
    assert isinstance(result, PreTrainedModel)
    return result


def inject(model: PreTrainedModel, directory: Path) -> PeftModel:
    """Wraps the modules of `model` that the adapter names. Draws no random numbers."""
    config = lora_config(directory)
    # On the meta device first: nothing is initialised, every tensor must come from the file.
    adapted = PeftModel(model, config, low_cpu_mem_usage=True)
    found = set_peft_model_state_dict(
        adapted, load_file(directory / WEIGHTS, device=str(model.device)), low_cpu_mem_usage=True
    )
    missing = [name for name, parameter in adapted.named_parameters() if parameter.is_meta]
    if missing or found.unexpected_keys:
        odd = (missing + list(found.unexpected_keys))[0]
        raise UserError(f"the adapter in {directory} does not fit this base ({odd}): give the base it was trained on")
    adapted.eval()
    adapted.requires_grad_(False)
    return adapted


def lora_config(directory: Path) -> LoraConfig:
    """The adapter's config; refuses what is not a LoRA with safetensors weights beside an untouched base."""
    kind = read_json(directory / ADAPTER).get("peft_type")
    if kind != "LORA":
        raise UserError(f"the adapter in {directory} is of type {kind}: only LoRA adapters are supported")
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"{directory} has no {WEIGHTS}: save the adapter with safetensors first")
    config = LoraConfig.from_pretrained(str(directory))
    assert isinstance(config, LoraConfig)
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"):
        raise UserError(f"the adapter in {directory} changed its base when it was made: convert it to a plain LoRA")
    config.inference_mode = True
    return config
