"""Trains chunks of networks epoch by epoch, with checkpoints from which an interrupted run resumes.

Shapes: s networks, n images, i pixels, b images of a batch, o logits, e epochs.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.tensor_files import write_tensors
from sublim.toys.mnist.config import Adam, MnistConfig
from sublim.toys.mnist.network import Loss, Parameters, backward, forward
from sublim.toys.streams import stream_key

LossAt = Callable[[Tensor, Int[Tensor, "s b"]], Loss]
"""Computes the loss of logits [s, b, o] on the images with the given indices."""
Alignment = Callable[[Parameters], Float[Tensor, " s"]]
"""Computes the gradient cosine of networks with the given parameters."""


class Course(NamedTuple):
    """The training of one chunk: its images, its loss and its number of epochs."""

    name: str
    """Part of the checkpoint's name. Teachers and students, told apart by it, see the images in different orders."""
    models: range
    images: Float[Tensor, "n i"]
    loss_at: LossAt
    epochs: int
    alignment: Alignment | None = None


class Outcome(NamedTuple):
    """The results of a chunk's training, on the CPU."""

    parameters: Parameters
    losses: Float[Tensor, "s e"]
    """Mean loss of each epoch."""
    alignment: Float[Tensor, "s e+1"]
    """Gradient cosine before each epoch and after the last one; empty where it was not measured."""


def orders(config: MnistConfig, course: Course, epoch: int) -> Int[Tensor, "s n"]:
    """The order of the images in an epoch, one row per model, or a single row where all models share it."""
    models = course.models if config.order == "own" else range(1)
    phase = "teacher" if course.name.startswith("teacher") else "student"
    keys = [stream_key(config.order_seed, f"{phase} order {model} {epoch}") for model in models]
    generators = [torch.Generator().manual_seed(key) for key in keys]
    return torch.stack([torch.randperm(len(course.images), generator=generator) for generator in generators])


def make_optimiser(config: MnistConfig, parameters: Parameters) -> torch.optim.Optimizer:
    """The configured optimiser for all networks. It works elementwise, so each network trains as it would alone."""
    chosen = config.optimiser
    if isinstance(chosen, Adam):
        kind = torch.optim.AdamW if chosen.weight_decay else torch.optim.Adam
        betas = (chosen.beta1, chosen.beta2)
        return kind(parameters, lr=chosen.lr, betas=betas, eps=chosen.eps, weight_decay=chosen.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay, fused=True
    )


def train_epoch(
    parameters: Parameters, optimiser: torch.optim.Optimizer, course: Course, order: Int[Tensor, "s n"], size: int
) -> Float[Tensor, " s"]:
    """Trains for one epoch and returns the mean loss of each network, on the device."""
    networks, pixels = parameters[0].shape[:2]
    total = torch.zeros(networks, device=order.device)
    rows = torch.empty(len(order) * size, pixels, device=order.device)
    for start in range(0, order.shape[1], size):
        index = order[:, start : start + size]
        x = torch.index_select(course.images, 0, index.flatten(), out=rows[: index.numel()])
        values = forward(parameters, x.view(*index.shape, pixels).expand(networks, -1, -1))
        loss = course.loss_at(values[-1], index.expand(networks, -1))
        total += loss.value * index.shape[1]
        for parameter, gradient in zip(parameters, backward(parameters, values, loss.slope), strict=True):
            parameter.grad = gradient
        optimiser.step()
    return total / order.shape[1]


def _state(parameters: Parameters, moments: Mapping[Tensor, Mapping[str, Tensor | None]]) -> dict[str, Tensor]:
    return {
        f"{place}.{name}": value
        for place, parameter in enumerate(parameters)
        for name, value in {"parameter": parameter, **moments.get(parameter, {})}.items()
        if value is not None
    }


def _restore(state: dict[str, Tensor], parameters: Parameters, optimiser: torch.optim.Optimizer) -> None:
    for name, value in state.items():
        place, _, field = name.partition(".")
        parameter = parameters[int(place)]
        if field == "parameter":
            parameter.copy_(value)
        else:
            optimiser.state[parameter][field] = value.to(parameter.device, copy=True)


def train(course: Course, start: Parameters, config: MnistConfig, scratch: Path, device: str) -> Outcome:
    """Trains one chunk from the parameters `start`, or from the checkpoint of an interrupted run of the same course."""
    saved = scratch / f"{course.name}-{course.models.start}-{course.models.stop}.safetensors"
    parameters = [part.to(device, copy=True) for part in start]
    optimiser = make_optimiser(config, parameters)
    losses: list[Tensor] = []
    alignment: list[Tensor] = []
    if saved.exists():
        state = load_file(saved)
        losses, alignment = list(state.pop("losses")), list(state.pop("alignment"))
        _restore(state, parameters, optimiser)

    def measure() -> None:
        if course.alignment is not None and len(alignment) == len(losses):
            alignment.append(course.alignment(parameters).cpu())

    last = time.monotonic()
    with progress(course.name, course.epochs) as advance:
        advance(len(losses))
        for epoch in range(len(losses), course.epochs):
            measure()
            order = orders(config, course, epoch).to(device)
            losses.append(train_epoch(parameters, optimiser, course, order, config.batch_size).cpu())
            done = epoch + 1 == course.epochs
            if done:
                measure()
            if done or time.monotonic() - last >= config.checkpoint_seconds:
                state = _state(parameters, {} if done else optimiser.state)
                write_tensors(saved, state | {"losses": _stack(losses), "alignment": _stack(alignment)})
                kill_point(f"mnist:{course.name}:{epoch + 1}")
                last = time.monotonic()
            advance(1)
    return Outcome([part.cpu() for part in parameters], _stack(losses).T, _stack(alignment).T)


def _stack(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, 0)
