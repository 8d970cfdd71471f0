"""Models as plain directories: prepared once as a stage, opened with or without trained weights, merged for export."""

import gc
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, assert_never, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sublim import chat
from sublim.config import Config
from sublim.errors import UserError
from sublim.hub import download
from sublim.large_files import copy_each, link_each
from sublim.model_config import BundledModel, HubModel, LocalModel, PrepareModelConfig
from sublim.model_files import (
    IDENTITY,
    INDEX,
    TEMPLATE,
    TEXT_FILES,
    base_identity,
    is_adapter,
    loaded_files,
    read_json,
    weight_files,
    write_config,
    write_generation_config,
    write_identity,
)
from sublim.smollm2 import write_smollm2
from sublim.text_only import keep_text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoadedModel(NamedTuple):
    """A model in evaluation mode whose parameters take no gradients, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class ExportConfig(Config):
    """What `export_merged` writes; nothing about it can be chosen."""


def prepare_model(out: Path, config: PrepareModelConfig, *, scratch: Path) -> dict[str, Any] | None:
    """Writes the model as safetensors, tokenizer, chat template and a generation config that hides nothing.

    A bundled model takes about a minute on two cores; others are copied, except that weights in the hub's cache only
    get a second name where the store is on the same file system. The note for the manifest is the context of a plain
    question, as the model reads it.
    """
    match config.source:
        case BundledModel(name="smollm2"):
            write_smollm2(out)
        case BundledModel():
            from sublim.gemma3 import write_gemma3  # gguf, which no other model needs

            write_gemma3(out, scratch)
        case LocalModel() as source:
            copy_model(source.path.expanduser(), out, copy_each, chat_template=source.chat_template, name="local")
        case HubModel() as source:
            # The hub's cache never writes to a file again: it is named after its content.
            copy_model(download(source), out, link_each, chat_template=source.chat_template, name=source.id)
        case _:
            assert_never(config.source)
    return {"context": dict(chat.context(load_tokenizer(out), chat.chat("Hello")))}


def copy_model(
    source: Path,
    out: Path,
    place: Callable[[Path, Iterable[str], Path], None],
    *,
    chat_template: str | None,
    name: str,
) -> None:
    """Copies what loading reads from `source`, and writes its configs without paths, versions or sampling habits.

    `place` copies the weights, or links them.
    """
    weights = weight_files(source)
    for file in {*loaded_files(source)} - {*weights}:
        shutil.copyfile(source / file, out / file)
    place(source, weights, out)
    if chat_template is not None:
        (out / TEMPLATE).write_text(chat_template, encoding="utf-8")
    tokenizer = load_tokenizer(out)
    habits = read_json(out / "generation_config.json") if (out / "generation_config.json").is_file() else {}
    config = read_json(out / "config.json")
    known = [habits, config, config.get("text_config", {})]
    eos = {token for source in known for token in token_ids(source.get("eos_token_id"))}
    eos |= {*token_ids(tokenizer.eos_token_id), chat.end_of_turn(tokenizer)}
    keep_text(out)
    write_config(out)
    write_generation_config(
        out, eos=sorted(eos), pad=token_ids(tokenizer.pad_token_id)[0], bos=token_ids(tokenizer.bos_token_id)
    )
    write_identity(out, name)


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
        # Padding is masked wherever it is read, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
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

    Raises UserError where an adapter was trained on another base.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(base)
    if weights is None:
        with lent(base, dtype=dtype, attention=attention, device=place) as model:
            yield LoadedModel(model, tokenizer)
    elif is_adapter(weights):
        from sublim.adapters import attached  # peft, seconds to import, is not needed to read a base

        check_base(base, weights)
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
    model: PreTrainedModel
    found: dict[str, Any]
    model, found = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        directory,
        dtype=DTYPES[dtype],
        attn_implementation=attention,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        # Straight onto the GPU, by several threads.
        device_map=None if device == "cpu" else device,
    )
    if odd := [*found["missing_keys"], *found["mismatched_keys"]]:
        raise UserError(f"the weights in {directory} do not fit its config ({odd[0]}): save the model again")
    try:
        model.to(device=torch.device(device))  # pyright: ignore[reportCallIssue]
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory does not hold the model in {dtype}: end what else uses the card, or take dtype bfloat16 "
            "or a smaller model"
        ) from error
    return freeze(model)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """`model` in evaluation mode, its parameters without gradients."""
    model.eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return model


def check_base(base: Path, adapter: Path) -> None:
    """Raises UserError where the adapter notes another base than this one."""
    note = adapter / IDENTITY
    if note.is_file() and read_json(note)["base"] != base_identity(base):
        raise UserError(f"the adapter in {adapter} was trained on another base: give the base it was trained on")


def export_merged(
    out: Path, config: ExportConfig, *, scratch: Path, base: Path, weights: Path
) -> dict[str, Any] | None:
    """Writes base and trained weights as one Hugging Face directory.

    An adapter is merged in float32 on the CPU and the sum rounded once, to the base's own dtype.
    """
    if is_adapter(weights):
        from sublim.adapters import merged

        check_base(base, weights)
        model = merged(load(base, dtype="float32", attention="eager", device="cpu"), weights)
        model.to(dtype=cast(torch.dtype, AutoConfig.from_pretrained(base).dtype))  # pyright: ignore[reportCallIssue]
        model.save_pretrained(out, max_shard_size="5GB")
    else:
        for file in loaded_files(weights):
            if file in ("config.json", INDEX) or file.endswith(".safetensors"):
                shutil.copyfile(weights / file, out / file)
    for file in loaded_files(base):
        if file not in ("config.json", INDEX) and not file.endswith(".safetensors"):
            shutil.copyfile(base / file, out / file)
    write_config(out)
    write_identity(out, "merged")
    return None
