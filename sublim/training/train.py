"""The trainer `trl`: trains a teacher or a student on rows of prompts and answers, with transformers and peft."""

import copy
import logging
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sublim.chats.chat import context
from sublim.core.errors import NotEnoughRows, UserError
from sublim.core.hardware import no_flash
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.files.whole_files import whole_folder
from sublim.memory.fitting import naming
from sublim.memory.gpu_memory import free_gpu_memory
from sublim.models.adaptable import check_modules
from sublim.models.opening import borrowed_base, forget_base, freeze, load, load_tokenizer, supported_attention
from sublim.training.config import FullWeights, Lora, TrainConfig
from sublim.training.loop import Job, PlannedTrainer, latest_checkpoint, log_losses
from sublim.training.masking import TokenRow, label_count, label_span, row_chat, shared_prefix, token_rows
from sublim.training.plan import planned_updates
from sublim.training.saving import write_adapter, write_model
from sublim.training.step import EagerStep, GraphedStep, PackedStep, Step, within_windows

log = logging.getLogger(__name__)

LARGE = 2_000_000_000
CPU_BUDGET = 5 * 2**30


class Trainee(NamedTuple):
    """A model with trainable parameters, and a function that writes its weights to a directory."""

    model: PreTrainedModel | PeftModel
    write: Callable[[Path], None]


ChooseStep = Callable[[TrainConfig, list[TokenRow], str, PretrainedConfig, int], Step]
"""Takes the settings, the rows, the attention kernel, the model's config and the size of a micro-batch. Returns how a
micro-batch is computed."""

ReadRows = Callable[[PreTrainedTokenizerBase, Path, TrainConfig], tuple[list[dict[str, Any]], list[TokenRow]]]


def train(out: Path, config: TrainConfig, *, scratch: Path, base: Path, data: Path) -> dict[str, Any] | None:
    """Stage: trains on data/rows.jsonl, and keeps the weights as update-000016/ and so on, beside training.jsonl.

    An interrupted run resumes from the last checkpoint in `scratch`; on a CPU it then writes the same bytes as an
    uninterrupted one. With LoRA an update of the bundled model on 16 rows of 125 tokens takes 0.9 Tflop: about 5.3 s on
    two cores with bfloat16 instructions (10.6 s in float32), and 35 ms on an H100 as a CUDA graph (0.26 s in eager
    mode). A LoRA student of a 9B model takes 41 GiB of GPU memory with 12 rows at a time.
    """
    if config.trainer == "unsloth":
        from sublim.training import unsloth

        return unsloth.train(out, config, scratch=scratch, base=base, data=data)
    return train_on(opened, chosen_step, out, config, scratch=scratch, base=base, data=data)


def train_on(
    open_trainee: Callable[[TrainConfig, Path, str, PretrainedConfig], AbstractContextManager[Trainee]],
    choose_step: ChooseStep,
    out: Path,
    config: TrainConfig,
    *,
    scratch: Path,
    base: Path,
    data: Path,
    read: ReadRows | None = None,
) -> dict[str, Any]:
    """`train`, given the functions of a trainer that open its model and choose how a micro-batch is computed.

    `read` gives the rows and their tokens; by default `plain_rows`.
    """
    read = read or plain_rows
    config = config.resolved()
    tokenizer = load_tokenizer(base)
    raw, rows = read(tokenizer, data, config)
    plan = planned_updates(config, len(rows))
    if late := [update for update in config.keep if update > len(plan)]:
        raise UserError(f"keep asks for update {late[0]} of {len(plan)}: lower it or train for longer")
    wanted = {*config.keep, len(plan)}
    shape = AutoConfig.from_pretrained(base)
    check_positions(rows, shape)
    attention = supported_attention(config.attention, shape)
    check_attention(attention, config.dtype)
    kept, checkpoints = scratch / "kept", scratch / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with progress("training", len(plan)) as advance, open_trainee(config, base, attention, shape) as trainee:

        def keep(update: int) -> None:
            if update in wanted:
                with whole_folder(kept / f"update-{update:06d}") as draft:
                    trainee.write(draft)

        micro_batch = config.micro_batch or rows_that_fit(rows, shape, config)
        step = choose_step(config, rows, attention, shape, micro_batch)
        trainer = PlannedTrainer(
            trainee.model, tokenizer, Job(config, rows, plan, micro_batch, step, checkpoints, keep, advance)
        )
        with naming("in training", f"lower micro_batch (now {micro_batch}), which changes no result"):
            trainer.train(resume_from_checkpoint=latest_checkpoint(checkpoints))
        records = trainer.read_records()
    for directory in sorted(kept.glob("update-*")):
        shutil.copytree(directory, out / directory.name)
        kill_point("keeping")
    write_jsonl(out / "training.jsonl", records)
    log_losses(records)
    return {
        "contexts": [context(tokenizer, row_chat(raw[0])[:-1])],
        "attention": attention,
        "packed": isinstance(step, PackedStep),
        "dtype": config.dtype,
        "rows": len(rows),
        "updates": len(plan),
        "label_tokens": label_count(rows),
        "micro_batch": trainer.micro_batch,
    }


def plain_rows(
    tokenizer: PreTrainedTokenizerBase, data: Path, config: TrainConfig
) -> tuple[list[dict[str, Any]], list[TokenRow]]:
    """The rows of rows.jsonl that are trained on, and their tokens with every token of the answer to be learned."""
    raw = first_rows(data, config.rows)
    return raw, token_rows(tokenizer, raw, max_length=config.max_length)


def first_rows(data: Path, wanted: int | None) -> list[dict[str, Any]]:
    """The first `wanted` rows of rows.jsonl, or all of them; NotEnoughRows if there are fewer."""
    rows = list(islice(read_jsonl(data / "rows.jsonl"), wanted))
    if len(rows) < (wanted or 1):
        raise NotEnoughRows(f"{len(rows)} rows of {wanted or 1} wanted: generate more prompts or lower `rows`")
    return rows


def check_positions(rows: list[TokenRow], shape: PretrainedConfig) -> None:
    """Raises UserError for rows with more tokens than the model has positions."""
    limit = getattr(shape.get_text_config(), "max_position_embeddings", None)
    longest = max((len(row.input_ids) for row in rows), default=0)
    if limit is not None and longest > limit:
        raise UserError(f"rows of up to {longest} tokens exceed the model's {limit} positions: drop the longer ones")


def check_attention(attention: str, dtype: str) -> None:
    """Logs why a GPU does without flash-attention. Raises UserError if flash-attention was asked for and cannot run."""
    why = no_flash(dtype)
    if attention != "flash_attention_2":
        if why and torch.cuda.is_available():
            log.info("attention is %s, not flash-attention: %s", attention, why)
        return
    if why:
        raise UserError(f"flash_attention_2 cannot run here: {why}; or set attention to sdpa")
    try:
        import_module("flash_attn")
    except ImportError as error:
        raise UserError(
            f"flash-attn does not import ({error}): build it again for this version of torch, or set attention to sdpa"
        ) from error


@contextmanager
def opened(config: TrainConfig, base: Path, attention: str, shape: PretrainedConfig) -> Generator[Trainee]:
    """The base with trainable parameters. An adapter is taken off again at the end: this process keeps its bases."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    match config.method:
        case Lora() as lora:
            dtype = frozen_dtype(lora, config.dtype, shape)
            with borrowed_base(base, dtype=dtype, attention=attention, device=device) as model:
                before = copy.deepcopy(vars(model.config))
                adapted = get_peft_model(model, lora_config(lora, model))
                yield Trainee(adapted, lambda directory: write_adapter(directory, adapted, base))
                adapted.unload()
                vars(model.config).clear()  # the Trainer sets use_cache
                vars(model.config).update(before)
                freeze(model)
        case FullWeights():
            forget_base()
            model = load(base, dtype="float32", attention=attention, device=device)
            model.requires_grad_(True)
            yield Trainee(model, lambda directory: write_model(directory, model, base))
        case _:
            assert_never(config.method)


def lora_config(lora: Lora, model: PreTrainedModel) -> LoraConfig:
    """The adapter's config for peft. Raises UserError if the model lacks one of the modules."""
    check_modules(model, lora.target_modules)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - a float scales as well
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=sorted(lora.target_modules),
        bias="none",
    )


def frozen_dtype(lora: Lora, dtype: str, shape: PretrainedConfig) -> str:
    """The number type of the frozen weights."""
    if lora.frozen_base == "bfloat16" and dtype == "float32":
        raise UserError("a bfloat16 frozen base needs dtype bfloat16: set frozen_base to float32, or use a GPU")
    if lora.frozen_base != "auto":
        return lora.frozen_base
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(shape).num_parameters()
    return "bfloat16" if dtype == "bfloat16" and parameters > LARGE else "float32"


def chosen_step(
    config: TrainConfig, rows: list[TokenRow], attention: str, shape: PretrainedConfig, micro_batch: int
) -> Step:
    """How a micro-batch is computed."""
    if attention == "flash_attention_2":
        return PackedStep(torch.device("cuda"), config.dtype)
    if not torch.cuda.is_available():
        return EagerStep(torch.device("cpu"), config.dtype, read_once(config, rows, shape))
    device, width = torch.device("cuda"), max(len(row.input_ids) for row in rows)
    # Where attention needs no more than a causal mask, one graph serves every batch.
    masked_alike = attention == "sdpa" and within_windows(shape, width)
    if config.cuda_graph and micro_batch >= config.batch_size and masked_alike:
        answer = max(map(label_span, rows))
        return GraphedStep(device, config.dtype, config.batch_size, width, answer)
    return EagerStep(device, config.dtype)


def read_once(config: TrainConfig, rows: list[TokenRow], shape: PretrainedConfig) -> list[int]:
    """The tokens with which all rows begin, if reading them once for all rows gives the same result; otherwise none."""
    # Dropout is drawn for each row, but only once for a passage that is read once.
    dropped = isinstance(config.method, Lora) and config.method.dropout > 0
    # Padding lies between that passage and a row's own tokens, and counts towards an attention window.
    windowed = not within_windows(shape, max(len(row.input_ids) for row in rows))
    return [] if dropped or windowed else shared_prefix(rows)


def rows_that_fit(rows: list[TokenRow], shape: PretrainedConfig, config: TrainConfig) -> int:
    """Rows in one forward pass, by a rough estimate of the memory that the activations of one token take.

    Without a GPU the memory budget is a constant, because the size of a micro-batch affects rounding and a rerun must
    write the same bytes. Sixteen rows of 125 tokens of the bundled model fit into it, and take 15 % less time than in
    two parts.
    """
    shape, width = shape.get_text_config(), 4 if config.dtype == "float32" else 2
    inner = getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size  # GPT-2's config may leave it out
    block = width * (24 * shape.hidden_size + 8 * inner)
    token = shape.num_hidden_layers * block + 12 * shape.vocab_size
    budget = 0.6 * free_gpu_memory() if torch.cuda.is_available() else CPU_BUDGET
    longest = max(len(row.input_ids) for row in rows)
    return int(min(max(1, budget // (token * longest)), config.batch_size))
