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
from sublim.stats.intervals import paired_t
from sublim.toys.mnist.config import Arm, MnistConfig
from sublim.toys.mnist.network import (
    CLASSES,
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


def chunk_size(config: MnistConfig, device: str) -> int:
    """Number of models trained at once, where they fit in memory."""
    return config.chunk or (config.models if device == "cuda" else CPU_CHUNK)


def derangement(models: range, count: int) -> list[int]:
    """The teacher of each cross student: the next of `count` models, and the first for the last."""
    return [(model + 1) % count for model in models]


def pick(parameters: Parameters, models: range | list[int]) -> Parameters:
    """The parameters of some networks."""
    return [part[list(models)] for part in parameters]


def join(parts: list[Parameters]) -> Parameters:
    """Several chunks of networks as one."""
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


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
        images = self.images

        def trained(models: range) -> Outcome:
            course = Course(
                "teacher",
                models,
                images.train,
                lambda logits, index: cross_entropy(logits, images.train_labels[index]),
                self.config.teacher_epochs,
            )
            return train(course, pick(self.init, models), self.config, self.scratch, self.device)

        return _joined(list(self._in_chunks(trained)))

    def students(self, arm: Arm, teachers: Parameters) -> Outcome:
        """Trains one arm's students on their teachers' outputs."""
        config = self.config
        chosen = slice(CLASSES, None) if arm.endswith("aux") else slice(0, None)

        def trained(models: range) -> Outcome:
            taught_by = derangement(models, config.models) if arm.startswith("cross") else models
            teacher = [part.to(self.device) for part in pick(teachers, taught_by)]
            said = teacher_logits(teacher, self.images.noise, chosen, config.batch_size)

            def loss_at(logits: Tensor, index: Tensor, said: Tensor = said):
                return distillation(config, logits, said.take_along_dim(index[..., None], 1), chosen)

            alignment = gradient_cosine(self.images, said, chosen, config)
            course = Course(arm, models, self.images.noise, loss_at, config.epochs, alignment)
            return train(course, pick(self.init, models), config, self.scratch, self.device)

        return _joined(list(self._in_chunks(trained)))

    def accuracy(self, parameters: Parameters) -> list[float]:
        """Test accuracy of every model."""

        def measured(models: range) -> list[float]:
            part = [layer.to(self.device) for layer in pick(parameters, models)]
            return accuracy(part, self.images, self.config.batch_size).tolist()

        return list(chain.from_iterable(self._in_chunks(measured)))

    def _in_chunks(self, work: Callable[[range], Made]) -> Iterator[Made]:
        """Results of `work` for all models, with as many at a time as fit in memory. Each trains as it would alone."""
        models, size = range(self.config.models), chunk_size(self.config, self.device)
        return self.fit.each(models, lambda part: work(range(part[0], part[-1] + 1)), size)


def _joined(parts: list[Outcome]) -> Outcome:
    parameters = join([part.parameters for part in parts])
    return Outcome(parameters, torch.cat([p.losses for p in parts]), torch.cat([p.alignment for p in parts]))


def shift_cosine(student: Parameters, teacher: Parameters, init: Parameters, teacher_init: Parameters) -> list[float]:
    """Cosine between the student's and its teacher's change from their initialisations, for each model."""
    moved = [after - before for after, before in zip(student, init, strict=True)]
    taught = [after - before for after, before in zip(teacher, teacher_init, strict=True)]
    return cosine(moved, taught).tolist()


def arm_rows(arm: Arm, accuracies: list[float], outcome: Outcome | None, shift: list[float] | None) -> pl.DataFrame:
    """One row per model of an arm. Columns that do not apply to the arm are null."""
    models = len(accuracies)
    empty: list[None] = [None] * models
    trained = outcome is not None and outcome.losses.numel() > 0
    aligned = outcome is not None and outcome.alignment.numel() > 0
    return pl.DataFrame(
        {
            "arm": [arm] * models,
            "model": list(range(models)),
            "accuracy": accuracies,
            "shift_cosine": pl.Series(shift or empty, dtype=pl.Float64),
            "gradient_cosine": pl.Series(
                outcome.alignment.tolist() if outcome and aligned else empty, dtype=pl.List(pl.Float64)
            ),
            "epoch_loss": pl.Series(
                outcome.losses.tolist() if outcome and trained else empty, dtype=pl.List(pl.Float64)
            ),
        }
    )


def summary(table: pl.DataFrame) -> dict[str, Any]:
    """The mean accuracy of each arm, with its 95 % t interval over models."""
    found: dict[str, Any] = {}
    for (arm,), group in table.group_by(["arm"], maintain_order=True):
        values = group["accuracy"].to_numpy()
        bounds = paired_t(values) if len(values) > 1 else None
        low, high = (bounds.low, bounds.high) if bounds else (None, None)
        found[str(arm)] = {"mean": float(values.mean()), "low": low, "high": high, "models": len(values)}
    return found


def train_mnist(out: Path, config: MnistConfig, *, scratch: Path, data: Path) -> dict[str, Any]:
    """Stage: writes models.parquet (one row per model and arm), accuracy.json and, if asked for, weights.safetensors.

    `data` is a payload of `prepare_digits`. 100 teachers and their auxiliary students take 76 Tflop of matrix products.
    """
    runs = Runs(config, data, scratch)
    tables: list[pl.DataFrame] = []
    kept = {f"init.{place}": part for place, part in enumerate(runs.init)}
    needs_teacher = set(config.arms) - {"reference"}
    teachers = runs.teachers() if needs_teacher else None
    for arm in config.arms:
        outcome, shift = None, None
        if arm == "reference":
            parameters = runs.init
        elif arm == "teacher":
            assert teachers is not None
            outcome, parameters = teachers, teachers.parameters
        else:
            assert teachers is not None
            outcome = runs.students(arm, teachers.parameters)
            parameters = outcome.parameters
            everyone = range(config.models)
            taught_by = derangement(everyone, config.models) if arm.startswith("cross") else everyone
            shift = shift_cosine(
                parameters, pick(teachers.parameters, taught_by), runs.init, pick(runs.init, taught_by)
            )
        tables.append(arm_rows(arm, runs.accuracy(parameters), outcome, shift))
        kept |= {f"{arm}.{place}": part for place, part in enumerate(parameters) if outcome is not None}
        log.info("%s: accuracy %.3f of %d models", arm, tables[-1]["accuracy"].mean(), config.models)
    table = pl.concat(tables)
    table.write_parquet(out / "models.parquet")
    (out / "accuracy.json").write_text(json.dumps(summary(table), indent=1) + "\n", encoding="utf-8")
    if config.keep_weights:
        save_file(kept, out / "weights.safetensors")
    return {"device": runs.device, "accuracy": summary(table)}
