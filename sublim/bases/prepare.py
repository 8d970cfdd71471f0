"""The stage that writes a bundled, local or Hub model as a plain directory."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, assert_never

from sublim.bases.check import check_base, check_source
from sublim.bases.hub import download
from sublim.bases.smollm2 import write_smollm2
from sublim.bases.text_only import keep_text
from sublim.bases.tokens import read_tokenizer
from sublim.chats import chat
from sublim.files.large_files import copy_each, link_each
from sublim.models.config import BundledModel, HubModel, LocalModel, PrepareModelConfig
from sublim.models.files import (
    TEMPLATE,
    loaded_files,
    read_json,
    weight_files,
    write_config,
    write_generation_config,
    write_identity,
)
from sublim.models.opening import load_tokenizer, stop_ids, token_ids

MARK = "\ufeff"
"""Byte order mark, which some editors put at the start of a text file and a model would read."""


def prepare_model(out: Path, config: PrepareModelConfig, *, scratch: Path) -> dict[str, Any] | None:
    """Stage: writes weights in safetensors, tokenizer, chat template and a generation config without sampling defaults.

    A bundled model takes about a minute on two cores. Others are copied, but weights in the Hub's cache are hard-linked
    if the store is on the same file system. The manifest gets the context of a plain question, as the model reads it.

    Raises UserError if a run on this base would fail or compute another model (see `sublim.bases.check`).
    """
    match config.source:
        case BundledModel(name="smollm2"):
            write_smollm2(out)
        case BundledModel():
            from sublim.bases.gemma3 import write_gemma3  # gguf, which no other model needs

            write_gemma3(out, scratch)
        case LocalModel() as source:
            copy_model(source.path.expanduser(), out, copy_each, chat_template=source.chat_template, name="local")
        case HubModel() as source:
            # A link is safe, because the Hub's cache never changes a file: files are named by their content.
            copy_model(download(source), out, link_each, chat_template=source.chat_template, name=source.id)
        case _:
            assert_never(config.source)
    check_base(out)
    return {"context": dict(chat.context(load_tokenizer(out), chat.chat("Hello")))}


def copy_model(
    source: Path,
    out: Path,
    place: Callable[[Path, Iterable[str], Path], None],
    *,
    chat_template: str | None,
    name: str,
) -> None:
    """Copies the files that loading reads, and writes configs without paths, versions and sampling defaults.

    `place` copies or links the weights.
    """
    check_source(source)
    weights = weight_files(source)
    for file in {*loaded_files(source)} - {*weights}:
        shutil.copyfile(source / file, out / file)
    place(source, weights, out)
    template = out / TEMPLATE
    if chat_template is not None:
        template.write_text(chat_template.removeprefix(MARK), encoding="utf-8")
    elif template.is_file() and (own := template.read_bytes()).startswith(MARK.encode()):
        template.write_bytes(own.removeprefix(MARK.encode()))
    tokenizer = read_tokenizer(out)
    habits = read_json(out / "generation_config.json") if (out / "generation_config.json").is_file() else {}
    config = read_json(out / "config.json")
    known = [habits, config, config.get("text_config", {})]
    eos = stop_ids(tokenizer, *(each.get("eos_token_id") for each in known))
    keep_text(out)
    write_config(out)
    write_generation_config(
        out, eos=eos, pad=token_ids(tokenizer.pad_token_id)[0], bos=token_ids(tokenizer.bos_token_id)
    )
    write_identity(out, name)
