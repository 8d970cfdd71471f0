"""Small random models of a base's architecture: few, narrow layers, and the rest of the config unchanged."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

FEWEST, MOST = 2, 8
"""Smallest and largest number of layers: enough to have every kind of layer of the base (sliding and full attention,
dense layers and mixtures of experts)."""
HINTS = ("first_k", "interval", "offset", "pattern", "period", "replace", "shared", "step")
"""Parts of the names of config fields by which layers differ without a list of their kinds."""
VOCABULARY, INNER, WINDOW = 160, 64, 8
EXPERTS, FEWER = ("num_experts", "num_local_experts", "n_routed_experts"), 16
PARAMETERS = 100_000_000
"""Largest number of parameters; larger models would take too long."""
TABLES = ("vocab_size", "vocab_size_per_layer_input")
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
INNER_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "intermediate_size_mlp",
    "n_inner",
    "ffn_dim",
)


def small_models(shape: PretrainedConfig) -> Iterator[PreTrainedModel]:
    """A narrow model, then one of full width, in case the widths of the architecture depend on each other."""
    for made in (narrow, shallow):
        try:
            config = made(shape)
            with torch.device("meta"):
                count = AutoModelForCausalLM.from_config(config).num_parameters()
            if count <= PARAMETERS:
                yield filled(config)
        except Exception:  # noqa: BLE001 - a failure to make the config smaller is no fault of the base
            continue


def shallow(shape: PretrainedConfig) -> PretrainedConfig:
    """The config with few layers, a small vocabulary, and attention windows shorter than a short text."""
    small = copy.deepcopy(shape)
    text = small.get_text_config()
    kept = layers_kept(text)
    for name, value in by_layer(text).items():
        setattr(text, name, value[:kept])
    text.num_hidden_layers = kept
    limit(text, TABLES, VOCABULARY)
    limit(text, WINDOWS, WINDOW)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:  # None is not allowed in some configs
            setattr(text, name, 0)
    return small


def by_layer(text: PretrainedConfig) -> dict[str, Sequence[Any]]:
    """The fields of the config that have one value for each layer."""
    return {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, list | tuple) and len(value) == text.num_hidden_layers
    }


def layers_kept(text: PretrainedConfig) -> int:
    """How many layers, from the first on, include every kind of layer in the model."""
    fields = vars(text)
    hinted = any(fields[name] for name in fields if any(hint in name for hint in HINTS))
    shown = max((each.index(kind) + 1 for each in by_layer(text).values() for kind in each), default=0)
    return min(text.num_hidden_layers, MOST if hinted and not shown else max(FEWEST, min(shown, MOST)))


def narrow(shape: PretrainedConfig) -> PretrainedConfig:
    """`shallow` with few heads of the base's width, a hidden size to match, and fewer experts."""
    small = shallow(shape)
    text = small.get_text_config()
    heads = text.num_attention_heads
    keys = getattr(text, "num_key_value_heads", None) or heads
    # Not by attribute, because Gemma 4's config raises for values that differ between layers.
    width = vars(text).get("head_dim") or text.hidden_size // heads
    few_keys = min(keys, 2)
    few = few_keys * min(heads // keys, 2)
    text.num_attention_heads = few
    if getattr(text, "num_key_value_heads", None):
        text.num_key_value_heads = few_keys
    text.hidden_size = min(few * width, text.hidden_size)
    if hasattr(text, "word_embed_proj_dim"):
        text.word_embed_proj_dim = text.hidden_size
    limit(text, INNER_WIDTHS, INNER)
    # Grouped experts are not changed, because the number of chosen experts depends on the groups.
    if getattr(text, "n_group", 1) in (None, 1):
        limit(text, EXPERTS, max(FEWER, getattr(text, "num_experts_per_tok", None) or 0))
    return small


def limit(text: PretrainedConfig, names: Sequence[str], most: int) -> None:
    """Lowers those of the named fields to `most` that are numbers above it."""
    for name in names:
        if isinstance(value := getattr(text, name, None), int):
            setattr(text, name, min(value, most))


def filled(config: PretrainedConfig) -> PreTrainedModel:
    """The model with random float32 weights, large enough that attention differs between tokens."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model
