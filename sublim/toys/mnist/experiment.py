"""The MNIST experiment: does a student learn its teacher's digits from auxiliary logits on noise?

A teacher learns ten classes. Its network has a few auxiliary logits that no label was used for. A student with the
same initialisation learns only these logits, on noise, and is then tested on digits. After Cloud et al. 2025 (arXiv
2507.14805), section 6.2. Cross students are the control: model j learns from teacher j + 1, whose initialisation it
does not share.

Shapes: s networks, n images, i pixels, k chosen logits.
"""

import json
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from sublim.core.errors import UserError
from sublim.memory.fitting import MemoryFit
from sublim.stats.intervals import t_bounds
from sublim.toys.mnist.config import Arm, MnistConfig
from sublim.toys.mnist.network import (
    CLASSES,
    Loss,
    Parameters,
    backward,
    cosine,
    cross_entropy,
    distillation,
    forward,
    initialise,
    layer_sizes,
)
from sublim.toys.mnist.train import Alignment, Course, Outcome, train
from sublim.toys.streams import stream_key

log = logging.getLogger(__name__)
Made = TypeVar("Made")
CPU_CHUNK = 4
"""Number of networks trained at once on a CPU, whose cache they fit in."""


class Images(NamedTuple):
    """All images, on the device, with pixels in [-1, 1]."""

    train: Float[Tensor, "n i"]
    train_labels: UInt8[Tensor, " n"]
    test: Float[Tensor, "n i"]
    test_labels: UInt8[Tensor, " n"]
    noise: Float[Tensor, "n i"]


def read_images(data: Path, config: MnistConfig, device: str) -> Images:
    """The prepared digits, and the noise that students are trained on."""
    digits = load_file(data / "digits.safetensors")
    brightest = float(digits["brightest"])
    train, test = ((digits[f"{part}_images"].flatten(1) / brightest * 2 - 1).to(device) for part in ("train", "test"))
    labels = [digits[f"{part}_labels"].to(device) for part in ("train", "test")]
    generator = torch.Generator().manual_seed(stream_key(config.seed, "noise"))
    match config.noise:
        case "uniform":
            noise = torch.rand(config.noise_images, train.shape[1], generator=generator) * 2 - 1
        case "gaussian":
            noise = torch.randn(config.noise_images, train.shape[1], generator=generator)
        case "real":
            noise = train
    return Images(train, labels[0], test, labels[1], noise.to(device))


def derangement(models: range, count: int) -> list[int]:
    """The teacher of each cross student: the next of `count` models, and the first for the last."""
    return [(model + 1) % count for model in models]


def pick(parameters: Parameters, models: range | list[int]) -> Parameters:
    """The parameters of some networks."""
    return [part[list(models)] for part in parameters]


def teacher_logits(teacher: Parameters, noise: Tensor, chosen: slice, batch: int) -> Float[Tensor, "s n k"]:
    """The teachers' chosen logits on all noise images, which are the same in every epoch."""
    found = [
        forward(teacher, noise[start : start + batch].expand(len(teacher[0]), -1, -1))[-1][..., chosen]
        for start in range(0, len(noise), batch)
    ]
    return torch.cat(found, dim=1)


def accuracy(parameters: Parameters, images: Images, batch: int) -> Float[Tensor, " s"]:
    """Share of test images whose largest class logit is that of the true class. Auxiliary logits do not count."""
    right = torch.zeros(len(parameters[0]), dtype=torch.int64, device=images.test.device)
    for start in range(0, len(images.test), batch):
        part = slice(start, start + batch)
        logits = forward(parameters, images.test[part].expand(len(parameters[0]), -1, -1))[-1]
        right += (logits[..., :CLASSES].argmax(-1) == images.test_labels[part]).sum(-1)
    return right / len(images.test)


def gradient_cosine(images: Images, teacher: Tensor, chosen: slice, config: MnistConfig) -> Alignment | None:
    """Measures the cosine between the gradients of the distillation loss and of the teacher's task, at the student.

    None where the settings ask for no diagnostic images.
    """
    count = min(config.diagnostic_images, len(images.train), len(images.noise))
    if count == 0:
        return None

    def measure(parameters: Parameters) -> Float[Tensor, " s"]:
        networks = len(parameters[0])
        seen = forward(parameters, images.noise[:count].expand(networks, -1, -1))
        loss = distillation(config, seen[-1], teacher[:, :count], chosen)
        read = forward(parameters, images.train[:count].expand(networks, -1, -1))
        task = cross_entropy(read[-1], images.train_labels[:count].expand(networks, -1))
        return cosine(backward(parameters, seen, loss.slope), backward(parameters, read, task.slope))

    return measure


class Runs:
    """The models of one run. Teachers are trained first, because every student needs one."""

    def __init__(self, config: MnistConfig, data: Path, scratch: Path):
        self.config, self.scratch = config, scratch
        self.device = config.resolved().device
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device cuda: torch finds no CUDA device: set device=auto")
        self.images = read_images(data, config, self.device)
        self.fit = MemoryFit("models", "lower batch_size, which changes the result")
        keys = [stream_key(config.seed, f"initialisation {model}") for model in range(config.models)]
        generators = [torch.Generator().manual_seed(key) for key in keys]
        self.init = initialise(layer_sizes(config, self.images.train.shape[1]), generators)

    def teachers(self) -> Outcome:
        """Trains all teachers on the ten classes."""
        images, epochs = self.images, self.config.teacher_epochs

        def loss_at(logits: Tensor, index: Tensor) -> Loss:
            return cross_entropy(logits, images.train_labels[index])

        return self._trained(lambda models: Course("teacher", models, images.train, loss_at, epochs))

    def students(self, arm: Arm, teachers: Parameters) -> Outcome:
        """Trains one arm's students on their teachers' outputs."""
        config, noise = self.config, self.images.noise
        chosen = slice(CLASSES, None) if arm.endswith("aux") else slice(0, None)

        def course(models: range) -> Course:
            teacher = [part.to(self.device) for part in pick(teachers, self._taught_by(arm, models))]
            said = teacher_logits(teacher, noise, chosen, config.batch_size)

            def loss_at(logits: Tensor, index: Tensor) -> Loss:
                return distillation(config, logits, said.take_along_dim(index[..., None], 1), chosen)

            alignment = gradient_cosine(self.images, said, chosen, config)
            return Course(arm, models, noise, loss_at, config.epochs, alignment)

        return self._trained(course)

    def shift_cosine(self, arm: Arm, students: Parameters, teachers: Parameters) -> list[float]:
        """Cosine between each student's and its teacher's change from their initialisations."""
        moved, taught = (
            [after - before for after, before in zip(models, self.init, strict=True)] for models in (students, teachers)
        )
        return cosine(moved, pick(taught, self._taught_by(arm, range(self.config.models)))).tolist()

    def accuracy(self, parameters: Parameters) -> list[float]:
        """Test accuracy of every model."""

        def measured(models: range) -> list[float]:
            part = [layer.to(self.device) for layer in pick(parameters, models)]
            return accuracy(part, self.images, self.config.batch_size).tolist()

        return list(chain.from_iterable(self._in_chunks(measured)))

    def _taught_by(self, arm: Arm, models: range) -> range | list[int]:
        return derangement(models, self.config.models) if arm.startswith("cross") else models

    def _trained(self, course: Callable[[range], Course]) -> Outcome:
        """The outcome of the course of each chunk, with all models side by side."""

        def trained(models: range) -> Outcome:
            return train(course(models), pick(self.init, models), self.config, self.scratch, self.device)

        parts = list(self._in_chunks(trained))
        parameters = [torch.cat(layer) for layer in zip(*(part.parameters for part in parts), strict=True)]
        return Outcome(parameters, torch.cat([p.losses for p in parts]), torch.cat([p.alignment for p in parts]))

    def _in_chunks(self, work: Callable[[range], Made]) -> Iterator[Made]:
        """Results of `work` for all models, with as many at a time as fit in memory. Each trains as it would alone."""
        models = range(self.config.models)
        size = self.config.chunk or (len(models) if self.device == "cuda" else CPU_CHUNK)
        return self.fit.each(models, lambda part: work(range(part[0], part[-1] + 1)), size)


def arm_rows(arm: Arm, accuracies: list[float], outcome: Outcome | None, shift: list[float] | None) -> pl.DataFrame:
    """One row per model of an arm. Columns that do not apply to the arm are null."""
    alignment = outcome.alignment.tolist() if outcome and outcome.alignment.numel() else None
    losses = outcome.losses.tolist() if outcome and outcome.losses.numel() else None
    return pl.DataFrame(
        {
            "arm": arm,
            "model": range(len(accuracies)),
            "accuracy": accuracies,
            "shift_cosine": shift,
            "gradient_cosine": alignment,
            "epoch_loss": losses,
        },
        schema_overrides={
            "shift_cosine": pl.Float64,
            "gradient_cosine": pl.List(pl.Float64),
            "epoch_loss": pl.List(pl.Float64),
        },
    )


def summary(table: pl.DataFrame) -> dict[str, Any]:
    """The mean accuracy of each arm, with its 95 % t interval over models."""
    found: dict[str, Any] = {}
    for (arm,), group in table.group_by(["arm"], maintain_order=True):
        values = group["accuracy"].to_numpy()
        low, high = t_bounds(values)
        found[str(arm)] = {"mean": float(values.mean()), "low": low, "high": high, "models": len(values)}
    return found


def train_mnist(out: Path, config: MnistConfig, *, scratch: Path, data: Path) -> dict[str, Any]:
    """Stage: writes models.parquet (one row per model and arm), accuracy.json and, if asked for, weights.safetensors.

    `data` is a payload of `prepare_digits`. 100 teachers and their auxiliary students take 76 Tflop of matrix products.
    """
    runs = Runs(config, data, scratch)
    tables: list[pl.DataFrame] = []
    kept = {f"init.{place}": part for place, part in enumerate(runs.init)}
    teachers = runs.teachers() if set(config.arms) - {"reference"} else None
    for arm in config.arms:
        outcome, shift = None if arm == "reference" else teachers, None
        if teachers is not None and arm not in ("reference", "teacher"):
            outcome = runs.students(arm, teachers.parameters)
            shift = runs.shift_cosine(arm, outcome.parameters, teachers.parameters)
        parameters = runs.init if outcome is None else outcome.parameters
        tables.append(arm_rows(arm, runs.accuracy(parameters), outcome, shift))
        kept |= {f"{arm}.{place}": part for place, part in enumerate(parameters) if outcome is not None}
        log.info("%s: accuracy %.3f of %d models", arm, tables[-1]["accuracy"].mean(), config.models)
    table = pl.concat(tables)
    table.write_parquet(out / "models.parquet")
    (out / "accuracy.json").write_text(json.dumps(summary(table), indent=1) + "\n", encoding="utf-8")
    if config.keep_weights:
        save_file(kept, out / "weights.safetensors")
    return {"device": runs.device, "accuracy": summary(table)}
