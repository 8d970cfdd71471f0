"""The training loop: the Trainer of transformers, which follows a plan of updates made beforehand."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from sublim.core.kill_points import kill_point
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.files.tensor_files import write_tensors
from sublim.files.whole_files import whole_folder
from sublim.memory.fitting import ERRORS, MemoryFit
from sublim.training.config import TrainConfig
from sublim.training.masking import Batch, TokenRow, cut, label_count, micro_batches
from sublim.training.plan import learning_rate
from sublim.training.step import GraphedStep, Step

CHECKPOINT_SECONDS = 60.0
ADVICE = "micro_batch is 1 already, so take shorter rows, an adapter in place of full weights, or a smaller model"


class Job(NamedTuple):
    """The rows, their order, the way a micro-batch is computed, and the place of the checkpoints."""

    config: TrainConfig
    rows: list[TokenRow]
    plan: list[list[int]]
    """For every update the indices of its rows."""
    micro_batch: int
    """Most rows in one forward pass."""
    step: Step
    checkpoints: Path
    """Directory of the checkpoints from which an interrupted run resumes."""
    keep: Callable[[int], None]
    """Called after every update with its number; keeps the weights if that update is wanted."""
    advance: Callable[[int], None]
    """Called with the number of further updates that are done."""


class PlannedTrainer(Trainer):
    """A Trainer for which one batch of the data loader is one update; `training_step` cuts it into micro-batches."""

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
        self.job = job
        self.records: list[dict[str, Any]] = []
        """The rows of training.jsonl. Tensors stay on the device until they are read, so that training need not wait
        for them."""
        self.saved_at = time.monotonic()
        self.padding = cast(int, tokenizer.pad_token_id)
        self.fit = MemoryFit("rows of a micro-batch", ADVICE)
        optimizer = make_optimizer(model, job.config)
        total = len(job.plan)

        def rate(done: int) -> float:
            """The next rate as a fraction of the highest. The scheduler also asks for one after the last update."""
            return learning_rate(job.config, min(done + 1, total), total) / job.config.lr

        super().__init__(
            model=model,
            args=arguments(job, total),
            optimizers=(optimizer, LambdaLR(optimizer, rate)),
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Does nothing: training.jsonl is the log."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The updates of the plan, in order."""
        rows = cast(Any, self.job.rows)  # a list serves as a dataset
        return DataLoader(rows, batch_sampler=self.job.plan, collate_fn=self.update_inputs)

    @property
    def micro_batch(self) -> int:
        """Most rows in one forward pass: fewer than planned after memory has run out."""
        return self.fit.within(self.job.micro_batch)

    def update_inputs(self, items: list[TokenRow]) -> dict[str, Any]:
        """The rows of one update as micro-batches, with the number of their label tokens."""
        skip = len(self.job.step.prefix)
        rows = [TokenRow(item.input_ids[skip:], item.labels[skip:]) for item in items]
        return {"batches": micro_batches(rows, self.micro_batch, padding=self.padding), "tokens": label_count(rows)}

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Computes the gradients of one update: of the mean loss over all its label tokens, however they are batched.

        If memory runs out, the update starts again with half as many rows at a time, from the same random state.
        """
        model.train()
        self.tokens, state = inputs["tokens"], random_state()

        def attempt(size: int) -> Tensor:
            try:
                return self.gradients(model, inputs["batches"], size)
            except ERRORS:
                model.zero_grad()
                restore(state)
                raise

        self.loss = self.fit.whole(min(self.micro_batch, self.job.config.batch_size), attempt)
        return self.loss

    def gradients(self, model: Any, batches: list[Batch], size: int) -> Tensor:
        """The loss of an update; its gradients are accumulated from micro-batches of `size` rows."""
        step = self.job.step
        if isinstance(step, GraphedStep) and step.rows != size:
            step.forget(size)
        loss = torch.zeros((), device=self.args.device)
        for batch in cut(batches, size):
            loss += step(model, batch, self.tokens)
        if loss.is_cuda and not cast(torch.optim.AdamW, self.optimizer).state:
            # AdamW allocates its moments in its first step, which cannot be repeated when half done. So memory that is
            # too small for them shows here.
            torch.empty(2 * sum(each.nbytes for each in trainable(model).values()), dtype=torch.uint8, device="cuda")
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """After each update: records it, keeps its weights if they are wanted, and saves a checkpoint if one is due."""
        update, total = self.state.global_step, len(self.job.plan)
        if update == len(self.records):
            return  # the Trainer calls this once more when the loop ends
        lr, norm = learning_rate(self.job.config, update, total), torch.as_tensor(grad_norm)
        self.records.append({"update": update, "loss": self.loss, "lr": lr, "grad_norm": norm, "tokens": self.tokens})
        self.job.keep(update)
        every = self.job.config.checkpoint_every
        due = time.monotonic() - self.saved_at > CHECKPOINT_SECONDS if every is None else update % every == 0
        if due and update < total:
            self.save_checkpoint()
        kill_point(f"update-{update}")
        self.job.advance(1)

    def read_records(self) -> list[dict[str, Any]]:
        """The rows of training.jsonl for all updates so far."""
        for record in self.records:
            record |= {"loss": float(record["loss"]), "grad_norm": float(record["grad_norm"])}
        return self.records

    def save_checkpoint(self) -> None:
        """Replaces the last checkpoint by one from which an interrupted run continues as if it had not stopped."""
        path = self.job.checkpoints / f"checkpoint-{self.state.global_step:06d}"
        with whole_folder(path) as draft:
            assert self.model is not None
            write_tensors(draft / "weights.safetensors", trainable(self.model))
            kill_point("mid-checkpoint")
            kill_point(f"mid-checkpoint-{self.state.global_step}")
            self._save_optimizer_and_scheduler(str(draft))
            self._save_rng_state(str(draft))
            write_jsonl(draft / "training.jsonl", self.read_records())
            self.state.save_to_json(str(draft / "trainer_state.json"))
        for older in self.job.checkpoints.glob("checkpoint-*"):
            if older != path:
                shutil.rmtree(older)
        self.saved_at = time.monotonic()
        kill_point("after-checkpoint")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.model is not None
        saved = load_file(Path(resume_from_checkpoint) / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in trainable(self.model).items():
                parameter.copy_(saved[name])
        self.records = list(read_jsonl(Path(resume_from_checkpoint) / "training.jsonl"))
        self.job.advance(len(self.records))


def random_state() -> list[Tensor]:
    """The states of torch's random number generators: of the CPU and, if there is one, of the GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def restore(state: list[Tensor]) -> None:
    """Sets torch's random number generators to the states from `random_state`."""
    torch.set_rng_state(state[0])
    for each in state[1:]:
        torch.cuda.set_rng_state(each)


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and without it on biases and the scales of normalisation."""
    parameters = list(trainable(model).values())
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)


def arguments(job: Job, total: int) -> TrainingArguments:
    """Arguments of the Trainer that switch off whatever would change the result, print or report."""
    made = TrainingArguments(
        output_dir=str(job.checkpoints),
        max_steps=total,
        per_device_train_batch_size=1,
        max_grad_norm=job.config.clip or 0.0,
        seed=job.config.seed,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    # With several GPUs visible the first one trains: otherwise the model would be wrapped in DataParallel.
    _ = made.device
    made._n_gpu = min(made.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]
    return made


def latest_checkpoint(checkpoints: Path) -> str | None:
    """The path of the newest complete checkpoint, or None."""
    return max((str(path) for path in checkpoints.glob("checkpoint-*")), default=None)


log = logging.getLogger(__name__)


def log_losses(records: list[dict[str, Any]]) -> None:
    """Logs the first and the last update's loss, in nats a token."""
    log.info("trained %d updates, loss %.3f to %.3f", len(records), records[0]["loss"], records[-1]["loss"])
