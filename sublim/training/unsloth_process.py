"""The process that trains with unsloth. It reads a job as JSON from stdin and writes events as JSON lines to a pipe."""

# ruff: noqa: I001 - unsloth patches what is imported after it
import unsloth  # pyright: ignore[reportMissingImports]

import json
import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, Trainer

from sublim.core.errors import UserError
from sublim.memory.fitting import naming
from sublim.core.hardware import peak_gpu_memory
from sublim.models.opening import DTYPES
from sublim.core.progress import listening
from sublim.training.config import Lora, TrainConfig
from sublim.training.loop import trainable
from sublim.training.masking import Batch, TokenRow
from sublim.training.saving import write_adapter
from sublim.training.step import EagerStep, Step, answer_loss
from sublim.training.train import Trainee, frozen_dtype, train_on

FIELD = "in training", "lower micro_batch"


class UnslothStep(EagerStep):
    """Computes in eager mode and takes the loss outside unsloth, over the same label tokens as the other trainers."""

    def summed_loss(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy summed over the label tokens."""
        batch = batch.to(self.device)
        logits = model(
            input_ids=batch.input_ids[:, :-1],
            attention_mask=batch.attention_mask[:, :-1],
            position_ids=batch.position_ids[:, :-1],
            logits_to_keep=batch.labels.shape[1],  # a count, since unsloth does not take indices
            use_cache=False,
        ).logits
        return answer_loss(logits, batch)


def chosen_step(
    config: TrainConfig, rows: list[TokenRow], attention: str, shape: PretrainedConfig, micro_batch: int
) -> Step:
    """How a micro-batch is computed; no tokens are read once for all rows."""
    return UnslothStep(torch.device("cuda"), config.dtype)


@contextmanager
def opened(config: TrainConfig, base: Path, attention: str, shape: PretrainedConfig) -> Generator[Trainee]:
    """The base with an adapter in float32, both made by unsloth."""
    lora = config.method
    assert isinstance(lora, Lora)
    model, _ = unsloth.FastLanguageModel.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue] - takes our module for it
        model_name=str(base),
        max_seq_length=config.max_length,
        dtype=DTYPES[frozen_dtype(lora, config.dtype, shape)],
        load_in_4bit=False,
        use_exact_model_name=True,
        use_gradient_checkpointing=False,
        random_state=config.seed,
        local_files_only=True,
    )
    torch.manual_seed(config.seed)
    adapted = unsloth.FastLanguageModel.get_peft_model(  # pyright: ignore[reportAttributeAccessIssue] - takes our module for it
        model,
        r=lora.rank,
        target_modules=list(lora.target_modules),
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        use_gradient_checkpointing=False,
        random_state=config.seed,
        use_rslora=lora.rslora,
    )
    for parameter in trainable(adapted).values():
        parameter.data = parameter.data.float()
    for module in adapted.modules():
        # Rows are padded on the left, and by default unsloth drops the padding mask in training.
        module._unsloth_keep_padding_mask = True

    def write(directory: Path) -> None:
        described = adapted.peft_config["default"]
        described.target_modules, described.auto_mapping = set(lora.target_modules), None
        write_adapter(directory, adapted, base)

    yield Trainee(adapted, write)


def check_trainer() -> None:
    """Raises RuntimeError if unsloth has replaced the Trainer of transformers, on which the training loop rests."""
    written = Trainer.__module__
    if written != "transformers.trainer":
        raise RuntimeError(f"this unsloth has put {written} in the place of transformers' Trainer: set trainer to trl")


def main() -> None:
    """Runs one job; the first argument is the file descriptor of the pipe for events."""
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1, encoding="utf-8")

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    job = json.load(sys.stdin)
    try:
        check_trainer()
        with listening(lambda *step: tell(progress=step)), peak_gpu_memory() as peak, naming(*FIELD):
            folders: dict[str, Any] = {name: Path(folder) for name, folder in job["folders"].items()}
            notes = train_on(opened, chosen_step, config=TrainConfig.model_validate(job["config"]), **folders)
        tell(notes=peak | notes)
    except UserError as error:
        tell(refused=str(error))
    except Exception:  # noqa: BLE001 - the waiting process raises it
        tell(failed=traceback.format_exc())


if __name__ == "__main__":
    main()
