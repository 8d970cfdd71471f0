"""Trains many small autoencoders at once as tensor operations, with losses and gradients in closed form.

Shapes: g groups (one p_active and one seed, whose models see the same batches), m models of a group, f features,
d hidden dimensions, b batch, r recorded losses. The parameters of a model are one block [f, d+1]: W, then the bias.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim.memory.fitting import ERRORS, MemoryFit
from sublim.toys.superposition.config import SuperpositionConfig

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
GOLDEN, MIX1, MIX2 = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Cohort(NamedTuple):
    """The data and losses that a set of models of one size is trained with."""

    p_active: Float[Tensor, " g"]
    keys: Int[Tensor, " g"]
    """Key of each group's stream of random numbers. Groups with the same seed have the same key."""
    weight: Float[Tensor, "g m f"]
    """Weights of the features in the training loss; a weight of 0 leaves a feature out."""
    full: Float[Tensor, " f"]
    """Weights of the features in the loss without ablation."""
    teacher: Float[Tensor, "g f d+1"] | None
    """The model whose outputs are learned; None where the models reproduce their input."""


class Training(NamedTuple):
    """The state of training, on the CPU: parameters, AdamW's moments and recorded losses."""

    value: Float[Tensor, "g m f d+1"]
    mean: Float[Tensor, "g m f d+1"]
    square: Float[Tensor, "g m f d+1"]
    trained: Float[Tensor, "g m r"]
    """Training loss: mean over features, sum over the batch."""
    unablated: Float[Tensor, "g m r"]
    """Loss against the input, with the weights of all features."""


def begin(value: Float[Tensor, "g m f d+1"], config: SuperpositionConfig) -> Training:
    """The state before the first step of models with the parameters `value`."""
    losses = torch.zeros(*value.shape[:2], (config.steps - 1) // config.loss_every + 1)
    return Training(value.clone(), torch.zeros_like(value), torch.zeros_like(value), losses, losses.clone())


def rate_table(config: SuperpositionConfig) -> np.ndarray:
    """AdamW's factors at each step, [steps, 3]: 1 - lr * decay, lr / (1 - beta1^t), sqrt(1 - beta2^t)."""
    lr = np.array(config.learning_rates())
    step = np.arange(1, len(lr) + 1)
    table = [1 - lr * config.weight_decay, lr / (1 - BETA1**step), np.sqrt(1 - BETA2**step)]
    return np.ascontiguousarray(np.stack(table, axis=1), dtype=np.float32)


def _shift_xor(z: Tensor, bits: int) -> Tensor:
    return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))


def draw(keys: Int[Tensor, " s"], step: Int[Tensor, ""], features: int, batch: int) -> Float[Tensor, "s f b"]:
    """Uniform numbers on [0, 1] of one step. SplitMix64 in counter mode gives the same numbers on every device."""
    half = features * batch // 2
    counter = step * half + torch.arange(1, half + 1, device=keys.device)
    z = keys[:, None] + counter * GOLDEN
    z = _shift_xor(_shift_xor(z, 30) * MIX1, 27) * MIX2
    z = _shift_xor(z, 31)
    words = torch.cat([z & 0xFFFFFFFF, (z >> 32) & 0xFFFFFFFF], dim=1)
    return (words.to(torch.float32) * 2.0**-32).view(len(keys), features, batch)


def activate(uniform: Float[Tensor, "g f b"], p_active: Float[Tensor, " g"]) -> Float[Tensor, "g f b"]:
    """Data from one uniform number u per entry: the feature is active where u <= p, with the value u / p."""
    p = p_active[:, None, None]
    inverse = torch.where(p > 0, 1 / p, torch.zeros_like(p))
    return torch.where(uniform <= p, uniform * inverse, 0.0)


def before_relu(value: Float[Tensor, "n f d+1"], h: Float[Tensor, "n d b"]) -> Float[Tensor, "n f b"]:
    """W h + b."""
    return torch.baddbmm(value[..., -1:], value[..., :-1], h)


def outputs(value: Float[Tensor, "g f d+1"], x: Float[Tensor, "g f b"]) -> Float[Tensor, "g f b"]:
    """The outputs of one model per group on the data of its group."""
    return before_relu(value, value[..., :-1].mT @ x).relu_()


class Batch(NamedTuple):
    """The data of every group at one step, and the outputs that its models learn."""

    x: Float[Tensor, "g f b"]
    target: Float[Tensor, "g f b"]


def encode(value: Float[Tensor, "g m f d+1"], x: Float[Tensor, "g f b"]) -> Float[Tensor, "gm d b"]:
    """Hidden vectors of all models, with one matrix product per group."""
    g, m, f, d1 = value.shape
    stacked = value[..., :-1].permute(0, 1, 3, 2).reshape(g, m * (d1 - 1), f)
    return (stacked @ x).view(g * m, d1 - 1, -1)


def gradient(
    value: Float[Tensor, "g m f d+1"], batch: Batch, scale: Float[Tensor, "g m f 1"]
) -> Float[Tensor, "g m f d+1"]:
    """Gradient of the weighted squared error; `scale` is 2 * weight / f.

    With h = Wᵀx and e = scale * (x̂ - target) where x̂ > 0: dW = e hᵀ + x (Wᵀe)ᵀ and db = Σ e, summed over the batch.
    """
    g, m, f, d1 = value.shape
    flat = value.view(g * m, f, d1)
    h = encode(value, batch.x)
    pre = before_relu(flat, h)
    error = (pre.view(g, m, f, -1) - batch.target[:, None]).mul_(scale)
    error = torch.ops.aten.threshold_backward(error.view_as(pre), pre, 0)
    back = flat[..., :-1].mT @ error
    through_input = (batch.x @ back.view(g, m * (d1 - 1), -1).mT).view(g, f, m, d1 - 1).transpose(1, 2)
    weights = (error @ h.mT).view(g, m, f, d1 - 1) + through_input
    return torch.cat([weights, error.sum(-1).view(g, m, f, 1)], dim=-1)


def losses(
    value: Float[Tensor, "g m f d+1"], batch: Batch, weight: Float[Tensor, "g m f"], full: Float[Tensor, " f"]
) -> tuple[Float[Tensor, "g m"], Float[Tensor, "g m"]]:
    """The training loss and the loss without ablation: mean over features, sum over the batch."""
    g, m, f, d1 = value.shape
    output = before_relu(value.view(g * m, f, d1), encode(value, batch.x)).relu_().view(g, m, f, -1)
    trained = ((output - batch.target[:, None]).square().sum(-1) * weight).mean(-1)
    unablated = ((output - batch.x[:, None]).square().sum(-1) * full).mean(-1)
    return trained, unablated


class Steps:
    """The training steps of one chunk of groups in fixed memory, called one by one or replayed as a CUDA graph."""

    def __init__(self, cohort: Cohort, training: Training, config: SuperpositionConfig, device: str):
        self.training, self.batch_size, self.every = training, config.batch_size, config.loss_every
        self.p_active, self.weight = cohort.p_active.to(device), cohort.weight.to(device)
        keys, group = torch.unique(cohort.keys, return_inverse=True)
        self.keys, self.group = keys.to(device), group.to(device)
        self.full = cohort.full.to(device)
        self.teacher = None if cohort.teacher is None else cohort.teacher.to(device)
        self.scale = (2 * self.weight / len(self.full))[..., None]
        self.rates = torch.from_numpy(rate_table(config)).to(device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        # Recorded losses first, so that a record is one contiguous copy.
        recorded = (losses.permute(2, 0, 1).contiguous() for losses in training[3:])
        self.at = Training(*(tensor.to(device, copy=True) for tensor in (*training[:3], *recorded)))
        self.graphs = self._capture() if device == "cuda" else None

    def _batch(self) -> Batch:
        uniform = draw(self.keys, self.step, len(self.full), self.batch_size)
        x = activate(uniform[self.group], self.p_active)
        return Batch(x, x if self.teacher is None else outputs(self.teacher, x))

    def _update(self, *, record: bool) -> None:
        value, mean, square, *recorded = self.at
        batch = self._batch()
        if record:
            row = (self.step // self.every)[None]
            for kept, loss in zip(recorded, losses(value, batch, self.weight, self.full), strict=True):
                kept.index_copy_(0, row, loss[None])
        keep, size, correction = self.rates.index_select(0, self.step[None])[0].unbind()
        slope = gradient(value, batch, self.scale)
        mean.lerp_(slope, 1 - BETA1)
        square.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
        value.mul_(keep).sub_(mean / (square.sqrt() / correction + EPS) * size)
        self.step.add_(1)

    def _capture(self) -> dict[bool, torch.cuda.CUDAGraph]:
        saved = [tensor.clone() for tensor in self.at]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for record in (True, False):
                self._update(record=record)
        torch.cuda.current_stream().wait_stream(side)
        graphs = {record: torch.cuda.CUDAGraph() for record in (True, False)}
        for record, graph in graphs.items():
            with torch.cuda.graph(graph, pool=graphs[True].pool() if not record else None):
                self._update(record=record)
        for tensor, before in zip(self.at, saved, strict=True):
            tensor.copy_(before)
        return graphs

    def run(self, start: int, stop: int) -> None:
        """Trains from step `start` up to `stop`, without waiting for the device."""
        self.step.fill_(start)
        for step in range(start, stop):
            record = step % self.every == 0
            if self.graphs is None:
                self._update(record=record)
            else:
                self.graphs[record].replay()

    def write(self) -> None:
        """Copies the present state into the `training` that was given."""
        for kept, now in zip(self.training[:3], self.at[:3], strict=True):
            kept.copy_(now)
        for kept, now in zip(self.training[3:], self.at[3:], strict=True):
            kept.copy_(now.permute(1, 2, 0))


def chunk_size(cohort: Cohort, config: SuperpositionConfig, device: str) -> int:
    """Number of groups whose activations fit in half of a GPU's free memory, or in 64 MB on a CPU."""
    if config.chunk is not None:
        return config.chunk
    _, models, features = cohort.weight.shape
    bytes_per_group = 4 * features * config.batch_size * (6 * models + 10)
    room = torch.cuda.mem_get_info()[0] // 2 if device == "cuda" else 64 * 2**20
    return max(1, room // bytes_per_group)


class TensorEngine:
    """Trains a cohort in chunks of groups on one device. A single chunk keeps its memory and its graph."""

    def __init__(self, cohort: Cohort, training: Training, config: SuperpositionConfig, device: str):
        self.size = chunk_size(cohort, config, device)
        self.cohort, self.training, self.config, self.device = cohort, training, config, device
        self.fit = MemoryFit("groups of models", "lower batch_size or the number of models, which are other studies")
        self.only: Steps | None = None
        """The only chunk, where one chunk holds all groups."""

    def _steps(self, groups: slice) -> Steps:
        cohort, training = self.cohort, Training(*(tensor[groups] for tensor in self.training))
        teacher = None if cohort.teacher is None else cohort.teacher[groups]
        part = Cohort(cohort.p_active[groups], cohort.keys[groups], cohort.weight[groups], cohort.full, teacher)
        return Steps(part, training, self.config, self.device)

    def run(self, start: int, stop: int) -> None:
        """Trains from step `start` up to `stop` and copies the state back to the CPU."""
        everything = range(len(self.cohort.keys))
        for _ in self.fit.each(everything, partial(self._run, start, stop), self.size):
            pass

    def _run(self, start: int, stop: int, chosen: Sequence[int]) -> None:
        whole, groups = len(chosen) == len(self.cohort.keys), slice(chosen[0], chosen[-1] + 1)
        try:
            steps = self.only if whole and self.only is not None else self._steps(groups)
            steps.run(start, stop)
            steps.write()
            self.only = steps if whole else None
        except ERRORS:
            self.only = None
            raise
