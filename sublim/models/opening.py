"""Models as plain directories, opened with or without trained weights."""

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sublim.core.errors import UserError
from sublim.memory.fitting import patiently
from sublim.models.files import TEXT_FILES, base_identity, is_adapter, weight_files
from sublim.models.weights_check import check_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoadedModel(NamedTuple):
    """A model in evaluation mode whose parameters take no gradients, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def token_ids(value: Any) -> list[int]:
    """A config's token id, list of ids or null as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared model. Refuses one without a chat template or without character offsets.

    Gemma's takes seconds to read: one that this process has read is given again while its files stay as they were.
    """
    stats = [(name, (base / name).stat()) for name in TEXT_FILES if (base / name).is_file()]
    return _tokenizer(base.resolve(), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@lru_cache(maxsize=2)
def _tokenizer(base: Path, files: tuple[tuple[str, int, int], ...]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(base)
    if not tokenizer.is_fast:
        raise UserError(f"{base} has no tokenizer.json: save its tokenizer as a fast one first")
    if tokenizer.chat_template is None:
        raise UserError(f"{base} has no chat template: take an instruction-tuned model or give a chat_template")
    if tokenizer.pad_token is None:
        # Padding is masked wherever it is read, so any token will do that is no part of texts.
        marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        tokenizer.pad_token = tokenizer.eos_token or next(iter(marks), None)
        if tokenizer.pad_token is None:
            raise UserError(f"{base} has no special tokens: save its tokenizer with an eos_token")
    return tokenizer


class Held(NamedTuple):
    """The base that this process keeps, and what it was loaded from."""

    key: tuple[str, ...]
    model: PreTrainedModel


_held: Held | None = None
neighbours: list[Callable[[], None]] = []
"""What else in this process keeps a model; called before one is loaded onto a GPU, which two would not fit."""


@contextmanager
def open_model(
    base: Path, weights: Path | None = None, *, dtype: str, attention: str, device: str | None = None
) -> Generator[LoadedModel]:
    """The base, the base with the adapter in `weights`, or the full model in `weights`, for the time of the block.

    One base is kept per process; asking for another path, content, dtype, attention or device drops it. An adapter
    goes into the base's own modules and comes out again. Full weights are loaded for the block only, in the place
    of the kept base, so that two models never need memory at once. Blocks may be nested: the inner one gets a model
    of its own.

    Raises UserError where the weights do not fit the base (see sublim.models.weights_check).
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(base)
    if weights is not None:
        check_weights(base, weights)
    if weights is None:
        with lent(base, dtype=dtype, attention=attention, device=place) as model:
            yield LoadedModel(model, tokenizer)
    elif is_adapter(weights):
        from sublim.models.adapters import attached  # peft, seconds to import, is not needed to read a base

        with lent(base, dtype=dtype, attention=attention, device=place) as model, attached(model, weights):
            yield LoadedModel(model, tokenizer)
    else:
        forget_base()
        model = load(weights, dtype=dtype, attention=attention, device=place)
        model.generation_config = GenerationConfig.from_pretrained(base)
        yield LoadedModel(model, tokenizer)


@contextmanager
def lent(base: Path, *, dtype: str, attention: str, device: str) -> Generator[PreTrainedModel]:
    """The kept base if it is this one, otherwise this one loaded in its place; kept again when the block ends well."""
    global _held
    key = (str(base.resolve()), base_identity(base), dtype, attention, device)
    held, _held = _held, None
    if held is None or held.key != key:
        held = None
        forget_base()
        held = Held(key, load(base, dtype=dtype, attention=attention, device=device))
    yield held.model
    # Not reached when the block raised: whatever went wrong may have left the model half changed.
    _held = Held(key, freeze(held.model))


def forget_base() -> None:
    """Drops the base this process keeps and gives its memory back."""
    global _held
    _held = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load(directory: Path, *, dtype: str, attention: str, device: str) -> PreTrainedModel:
    """The model in `directory`, frozen, on `device`. Reads .safetensors only."""
    weight_files(directory)
    if device != "cpu":
        for forget in neighbours:
            forget()
    advice = f"it does not hold the model in {dtype}, so take dtype bfloat16 or a smaller model"
    return patiently(
        "in loading a model", advice, lambda: _loaded(directory, dtype=dtype, attention=attention, device=device)
    )


def _loaded(directory: Path, *, dtype: str, attention: str, device: str) -> PreTrainedModel:
    model: PreTrainedModel
    found: dict[str, Any]
    model, found = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        directory,
        dtype=DTYPES[dtype],
        attn_implementation=faithful_attention(attention, AutoConfig.from_pretrained(directory)),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        # Straight onto the GPU, by several threads.
        device_map=None if device == "cpu" else device,
    )
    if odd := [*found["missing_keys"], *found["mismatched_keys"]]:
        raise UserError(f"the weights in {directory} do not fit its config ({odd[0]}): save the model again")
    model.to(device=torch.device(device))  # pyright: ignore[reportCallIssue]
    return freeze(model)


def causal_class(shape: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that transformers makes a causal language model of this config with, or None."""
    return cast(type[PreTrainedModel] | None, MODEL_FOR_CAUSAL_LM_MAPPING.get(type(shape), None))


def faithful_attention(attention: str, shape: PretrainedConfig) -> str:
    """The kernel that computes the model as it was defined: `attention`, or eager where that kernel leaves things out.

    transformers' sdpa leaves out Gemma 2's soft cap without a word; neither it nor flash-attention 2 has the attention
    sinks of gpt-oss, which the classes of such models say.
    """
    made = causal_class(shape)
    if attention == "sdpa":
        softcapped = getattr(shape.get_text_config(), "attn_logit_softcapping", None) is not None
        return "eager" if softcapped or not getattr(made, "_supports_sdpa", True) else attention
    if attention == "flash_attention_2":
        other = getattr(made, "_compatible_flash_implementations", None)  # kernels that are not flash-attention 2
        return "eager" if other or not getattr(made, "_supports_flash_attn", True) else attention
    return attention


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """`model` in evaluation mode, its parameters without gradients."""
    model.eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return model
