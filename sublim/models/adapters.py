"""LoRA adapters: attached to a model for the time of a block, or merged into its weights."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from sublim.core.errors import UserError
from sublim.models.files import ADAPTER, INDEX, SINGLE, read_json
from sublim.models.folder_check import as_user_error

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""peft's prefix before the name that a module has in the base."""
UNSUPPORTED = {
    "alora_invocation_tokens": "works on part of a text only (aLoRA)",
    "layer_replication": "repeats layers of its base",
    "use_bdlora": "is block-diagonal",
    "use_qalora": "is made for a quantised base (QA-LoRA)",
    "arrow_config": "chooses among adapters (Arrow)",
    "kasa_config": "changes its base (KaSA)",
    "monteclora_config": "draws its weights at random (MonteCLoRA)",
}
"""Fields of peft's config, for adapters that a plain forward pass would not compute as they were trained."""


@contextmanager
def attached(model: PreTrainedModel, directory: Path) -> Generator[None]:
    """Inside the block `model` computes with the adapter. Modules keep their names, and no weights change.

    If this raises before the block begins, `model` may be partly changed and must not be used any more.
    """
    with restored(model):
        adapted = inject(model, directory)
        try:
            yield
        finally:
            adapted.unload()


@contextmanager
def restored(model: nn.Module) -> Generator[None]:
    """When the block ends, restores every module's submodules and parameters.

    peft does not remove trained copies of whole modules and trained biases when it unloads an adapter.
    """
    places = [vars(module)[kind] for module in model.modules() for kind in ("_modules", "_parameters")]
    before = [(place, dict(place)) for place in places]
    try:
        yield
    finally:
        for place, own in before:
            place.clear()
            place.update(own)


def adapter_layers(model: PreTrainedModel) -> list[BaseTunerLayer]:
    """The modules in `model` that belong to an attached adapter."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def unadapted(layers: Sequence[BaseTunerLayer]) -> Generator[None]:
    """Inside the block these modules compute as in the base."""
    # peft's disable_adapter also visits all parameters to set requires_grad, too slow for every decoding step.
    for layer in layers:
        layer._disable_adapters = True  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False  # pyright: ignore[reportPrivateUsage]


def merged(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """`model` with the adapter merged into its weights. Raises UserError for an adapter that cannot be merged."""
    if lora_config(directory).lora_bias:
        raise UserError(f"the adapter in {directory} adds biases that its base does not have: use it without merging")
    result = inject(model, directory).merge_and_unload(safe_merge=True)
    assert isinstance(result, PreTrainedModel)
    return result


def inject(model: PreTrainedModel, directory: Path) -> PeftModel:
    """Wraps the modules of `model` that the adapter names, without using random numbers.

    The adapter must have been checked to fit (see sublim.models.weights_check).
    """
    # Created on the meta device, so that nothing is initialised and every tensor must come from the file.
    adapted = PeftModel(model, lora_config(directory), low_cpu_mem_usage=True)
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = load_file(directory / WEIGHTS, device=str(model.device))
    # peft may store copies of the base's embeddings besides their adapters; these are not loaded.
    set_peft_model_state_dict(
        adapted, {name: tensor for name, tensor in tensors.items() if name in wanted}, low_cpu_mem_usage=True
    )
    missing = [name for name, parameter in adapted.named_parameters() if parameter.is_meta]
    assert not missing, f"{missing[0]} is not in {directory / WEIGHTS}"
    adapted.eval()
    adapted.requires_grad_(False)
    return adapted


def lora_config(directory: Path) -> LoraConfig:
    """The adapter's config. Raises UserError for anything but a LoRA in safetensors that leaves its base unchanged."""
    described = read_json(directory / ADAPTER)
    kind = described.get("peft_type")
    if kind != "LORA":
        raise UserError(f"the adapter in {directory} is of type {kind}: only LoRA adapters are supported")
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"{directory} has no {WEIGHTS}: save the adapter with safetensors first")
    if both := [name for name in (SINGLE, INDEX) if (directory / name).is_file()]:
        raise UserError(f"{directory} holds an adapter and a whole model ({both[0]}): move one of them elsewhere")
    known = {field.name for field in fields(LoraConfig)}
    # peft ignores unknown fields, and would compute something else than what was trained.
    if unknown := sorted(name for name, value in described.items() if value and name not in known):
        raise UserError(
            f"the adapter in {directory} sets {unknown[0]}, which this peft does not know: install a newer peft, or "
            "remove it from adapter_config.json if it does not affect what the adapter computes"
        )
    if found := [why for name, why in UNSUPPORTED.items() if described.get(name)]:
        raise UserError(f"the adapter in {directory} {found[0]}, which is not supported: train a plain LoRA")
    with as_user_error(f"peft cannot read the {ADAPTER} in {directory}", "save the adapter again with peft"):
        config = LoraConfig.from_pretrained(str(directory))
    assert isinstance(config, LoraConfig)
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"):
        raise UserError(f"the adapter in {directory} changed its base's weights: convert it to a plain LoRA")
    config.inference_mode = True
    return config


def beside_low_rank(config: LoraConfig) -> str | None:
    """What the adapter has besides scaled products of two matrices; None for a plain LoRA."""
    found = {
        "DoRA": config.use_dora,
        "lora_bias": config.lora_bias,
        "trained biases": config.bias != "none",
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "target_parameters": config.target_parameters,
    }
    return next((name for name, there in found.items() if there), None)


def scale(config: LoraConfig, module: str) -> float:
    """The factor of the product of the two matrices of `module`, named as in the base."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)
