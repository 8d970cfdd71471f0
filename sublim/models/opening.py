"""Loading models from plain directories, with or without trained weights."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
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

from sublim.chats.chat import end_of_turn
from sublim.core.errors import UserError
from sublim.memory.fitting import patiently, release
from sublim.models.files import TEXT_FILES, base_identity, is_adapter, weight_files
from sublim.models.weights_check import check_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoadedModel(NamedTuple):
    """A model in evaluation mode without gradients, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def token_ids(value: Any) -> list[int]:
    """A token id, list of ids or null from a config, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def stop_ids(tokenizer: PreTrainedTokenizerBase, *declared: Any) -> list[int]:
    """Tokens that end a turn, sorted: the chat template's, the tokenizer's and those that configs declare."""
    ends = {token for value in (tokenizer.eos_token_id, *declared) for token in token_ids(value)}
    return sorted(ends | {end_of_turn(tokenizer)})


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared model. Raises UserError if it has no chat template or no character offsets.

    Gemma's tokenizer takes seconds to load, so tokenizers are cached in this process while their files do not change.
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
        # Padding is always masked, so any token that does not occur in texts can be used.
        marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        tokenizer.pad_token = tokenizer.eos_token or next(iter(marks), None)
        if tokenizer.pad_token is None:
            raise UserError(f"{base} has no special tokens: save its tokenizer with an eos_token")
    return tokenizer


_kept: dict[tuple[str, ...], PreTrainedModel] = {}
"""The one base that this process keeps in memory, by its path, content and the settings it was loaded with."""
release_other_models: list[Callable[[], None]] = []
"""Functions that free other models kept in this process. They are called before a model is loaded onto a GPU, which
may not have memory for two."""


@contextmanager
def open_model(
    base: Path, weights: Path | None = None, *, dtype: str, attention: str, device: str | None = None
) -> Generator[LoadedModel]:
    """The base, the base with the adapter in `weights`, or the full model in `weights`, for the time of the block.

    Each process keeps one base in memory. It is dropped when another path, content, dtype, attention or device is
    requested. An adapter is attached to the kept base and removed afterwards. Full weights are loaded for the block
    only, after the kept base is dropped, so that two models are never in memory. Blocks may be nested; the inner block
    then loads a model of its own.

    Raises UserError if the weights do not fit the base (see sublim.models.weights_check).
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(base)
    if weights is not None:
        check_weights(base, weights)
    if weights is None or is_adapter(weights):
        with borrowed_base(base, dtype=dtype, attention=attention, device=place) as model, ExitStack() as stack:
            if weights is not None:
                from sublim.models.adapters import attached  # importing peft takes seconds, and a base does not need it

                stack.enter_context(attached(model, weights))
            yield LoadedModel(model, tokenizer)
    else:
        forget_base()
        model = load(weights, dtype=dtype, attention=attention, device=place)
        model.generation_config = GenerationConfig.from_pretrained(base)
        yield LoadedModel(model, tokenizer)


@contextmanager
def borrowed_base(base: Path, *, dtype: str, attention: str, device: str) -> Generator[PreTrainedModel]:
    """The kept base if it is this one, otherwise this one loaded in its place. It is kept after the block."""
    key = (str(base.resolve()), base_identity(base), dtype, attention, device)
    if (model := _kept.pop(key, None)) is None:
        forget_base()
        model = load(base, dtype=dtype, attention=attention, device=device)
    yield model
    # Not reached if the block raised, because the model may then be partly changed.
    _kept.clear()
    _kept[key] = freeze(model)


def forget_base() -> None:
    """Drops the base that this process keeps, and frees its memory."""
    _kept.clear()
    release()


def load(directory: Path, *, dtype: str, attention: str, device: str) -> PreTrainedModel:
    """Loads the model in `directory`, frozen, onto `device`; reads weights in safetensors only."""
    weight_files(directory)
    if device != "cpu":
        for forget in release_other_models:
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
        attn_implementation=supported_attention(attention, AutoConfig.from_pretrained(directory)),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        # Loads directly onto the GPU with several threads.
        device_map=None if device == "cpu" else device,
    )
    if odd := [*found["missing_keys"], *found["mismatched_keys"]]:
        raise UserError(f"the weights in {directory} do not fit its config ({odd[0]}): save the model again")
    model.to(device=torch.device(device))  # pyright: ignore[reportCallIssue]
    return freeze(model)


def causal_class(shape: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The transformers class of causal language models for this config, or None."""
    return cast(type[PreTrainedModel] | None, MODEL_FOR_CAUSAL_LM_MAPPING.get(type(shape), None))


def supported_attention(attention: str, shape: PretrainedConfig) -> str:
    """`attention`, or "eager" if that kernel would ignore a part of the model's attention.

    transformers' sdpa silently ignores Gemma 2's logit soft-capping. Neither sdpa nor flash-attention 2 supports the
    attention sinks of gpt-oss; the model class then says so.
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
    """Puts `model` into evaluation mode and turns off the gradients of its parameters."""
    model.eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return model
