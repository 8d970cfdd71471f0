"""Many ReLU networks at once: batched matrix products, and losses with gradients in closed form.

Shapes: s networks, b images of a batch, i inputs and o outputs of a layer, k chosen logits. The parameters are one list
with W [s, i, o] and b [s, 1, o] of each layer in turn.
"""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sublim.toys.mnist.config import MnistConfig

CLASSES = 10
Parameters = list[Tensor]


def layer_sizes(config: MnistConfig, pixels: int) -> list[int]:
    """Number of units of each layer, from the pixels to the logits: ten classes, then the auxiliary logits."""
    return [pixels, *[config.width] * config.depth, CLASSES + config.aux]


def initialise(sizes: list[int], generators: list[torch.Generator]) -> Parameters:
    """Weights drawn from N(0, 1/inputs) and zero biases, with one network per generator."""
    parameters: Parameters = []
    for inputs, outputs in itertools.pairwise(sizes):
        drawn = [torch.randn(inputs, outputs, generator=generator) for generator in generators]
        parameters += [torch.stack(drawn) / inputs**0.5, torch.zeros(len(generators), 1, outputs)]
    return parameters


def forward(parameters: Parameters, x: Float[Tensor, "s b i"]) -> list[Float[Tensor, "s b o"]]:
    """The values of every layer: the input, each hidden layer after its ReLU, and the logits."""
    values = [x]
    for layer in range(0, len(parameters), 2):
        value = torch.baddbmm(parameters[layer + 1], values[-1], parameters[layer])
        values.append(value if layer + 2 == len(parameters) else value.relu_())
    return values


def backward(parameters: Parameters, values: list[Tensor], slope: Float[Tensor, "s b o"]) -> list[Tensor]:
    """Gradients of the parameters. `values` come from `forward`; `slope` is the loss's gradient at the logits."""
    gradients: list[Tensor] = []
    for layer in range(len(parameters) - 2, -1, -2):
        value = values[layer // 2]
        gradients += [slope.sum(1, keepdim=True), value.mT @ slope]
        if layer:
            slope = torch.ops.aten.threshold_backward(slope @ parameters[layer].mT, value, 0)
    return gradients[::-1]


class Loss(NamedTuple):
    """The loss of each network (mean over the batch) and its gradient at the logits."""

    value: Float[Tensor, " s"]
    slope: Float[Tensor, "s b o"]


def _embed(slope: Float[Tensor, "s b k"], logits: Float[Tensor, "s b o"], chosen: slice) -> Float[Tensor, "s b o"]:
    """The gradient at all logits, zero outside the chosen ones."""
    full = torch.zeros_like(logits)
    full[..., chosen] = slope
    return full


def cross_entropy(logits: Float[Tensor, "s b o"], labels: UInt8[Tensor, "s b"]) -> Loss:
    """Cross-entropy of the ten classes, without the auxiliary logits."""
    classes = slice(0, CLASSES)
    log_p = logits[..., classes].log_softmax(-1)
    target = labels.to(torch.int64)[..., None]
    value = -log_p.gather(-1, target)[..., 0].mean(-1)
    slope = log_p.exp_()
    slope.scatter_add_(-1, target, torch.full_like(slope[..., :1], -1.0))
    return Loss(value, _embed(slope.div_(logits.shape[1]), logits, classes))


def kl(logits: Float[Tensor, "s b o"], teacher: Float[Tensor, "s b k"], chosen: slice) -> Loss:
    """KL(teacher ‖ student) of the softmaxes over the chosen logits."""
    student, target = logits[..., chosen].log_softmax(-1), teacher.log_softmax(-1)
    p = target.exp()
    value = (p * (target - student)).sum(-1).mean(-1)
    return Loss(value, _embed((student.exp_() - p).div_(logits.shape[1]), logits, chosen))


def mse(logits: Float[Tensor, "s b o"], teacher: Float[Tensor, "s b k"], chosen: slice) -> Loss:
    """Mean squared difference of the chosen logits."""
    error = logits[..., chosen] - teacher
    value = error.square().mean((-1, -2))
    return Loss(value, _embed(error * (2 / (error.shape[1] * error.shape[2])), logits, chosen))


def distillation(config: MnistConfig, logits: Tensor, teacher: Tensor, chosen: slice) -> Loss:
    """The loss that students are trained with."""
    return (kl if config.loss == "kl" else mse)(logits, teacher, chosen)


def cosine(a: Parameters, b: Parameters) -> Float[Tensor, " s"]:
    """Cosine between two directions in parameter space, for each network; 0 where one direction is zero."""
    rows = (torch.cat([part.flatten(1) for part in parameters], dim=1) for parameters in (a, b))
    return torch.nn.functional.cosine_similarity(*rows, dim=1)
