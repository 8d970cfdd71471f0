"""Settings of the superposition experiments: the models, their training, and the grid."""

import math
import shutil
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.hardware import gpu

Probability = Annotated[float, Field(ge=0, le=1)]
COMPILERS = ("c++", "g++", "clang++")


class Schedule(Config):
    """How the learning rate changes over the steps."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """The rate stays constant, or falls to 0 at the last step along a line or half a cosine."""
    warmup: int = Field(default=0, ge=0)
    """Number of steps over which the rate first rises linearly from 0."""


class SuperpositionConfig(Config):
    """A grid of autoencoders x̂ = relu(W Wᵀ x + b) over p_active, ablated or auxiliary features, and seeds.

    The model is that of Elhage et al. 2022, "Toy Models of Superposition".
    """

    features: int = Field(default=20, ge=1)
    """Number of features of the data, n."""
    hidden: int = Field(default=5, ge=1)
    """Number of hidden dimensions, m, in which the features are represented."""
    p_active: tuple[Probability, ...] = (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1, 0.05, 0.01, 0.001)
    """Probabilities that a feature is active in an example. An active feature is uniform on [0, 1]."""
    ablated: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4)
    """Features to ablate. For each, a student learns its teacher's outputs with this feature left out of the loss."""
    auxiliary: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers k of auxiliary features. For each, a teacher has k more features that its loss leaves out, and a student
    learns the teacher's outputs for these features only."""
    seeds: tuple[int, ...] = (0,)
    """Each seed repeats the whole grid with another initialisation and other data."""
    other_initialisation: bool = True
    """Also train every student from an initialisation that differs from its teacher's, as a control."""
    importance: float = Field(default=0.7, gt=0)
    """The weight of feature i in the loss is importance to the power of i."""
    batch_size: int = Field(default=1024, gt=0, multiple_of=32)
    """Number of examples per step. The loss is summed over them."""
    steps: int = Field(default=10_000, ge=1)
    """Number of training steps of every teacher and every student."""
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay, of weights and biases."""
    schedule: Schedule = Schedule()
    """How the learning rate changes over the steps."""
    loss_every: int = Field(default=100, ge=1)
    """Number of steps between two recorded losses."""
    engine: Literal["auto", "cuda", "native", "torch"] = "auto"
    """How the models are trained. cuda: tensors in a CUDA graph. native: C++ that is compiled at first use. torch:
    tensors on the CPU. auto: the first of these that the machine can run."""
    chunk: RunOnly[int | None] = None
    """Number of groups (one p_active and one seed each) that are trained at once; None: as many as fit in memory."""
    checkpoint_every: RunOnly[int] = 1000
    """Number of steps between two checkpoints. An interrupted sweep resumes from the last one."""
    threads: RunOnly[int | None] = None
    """Number of threads of the native engine; None means as many as torch uses."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if missing := [i for i in self.ablated if i >= self.features]:
            raise ValueError(f"ablated {missing}: the model has features 0 to {self.features - 1}")
        if large := [k for k in self.auxiliary if k > self.features]:
            raise ValueError(f"auxiliary {large}: at most as many auxiliary features as features ({self.features})")
        for name in ("p_active", "ablated", "auxiliary", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has a value twice: {values}: give each value once")
        if not self.p_active or not self.seeds or not (self.ablated or self.auxiliary):
            raise ValueError("nothing to train: give p_active, seeds, and ablated or auxiliary features")
        return self

    def resolved(self) -> Self:
        """The same settings with the engine that auto stands for on this machine."""
        if self.engine != "auto":
            return self
        return self.model_copy(update={"engine": "cuda" if gpu() else "native" if compiler() else "torch"})

    def decay(self) -> float:
        """The factor by which weight decay alone shrinks a weight that no gradient reaches, over all steps: .905 by
        default."""
        return math.prod(1 - rate * self.weight_decay for rate in self.learning_rates())

    def learning_rates(self) -> list[float]:
        """The learning rate of every step."""
        warmup, steps = self.schedule.warmup, self.steps
        rates: list[float] = []
        for step in range(steps):
            done = max(0, step - warmup) / max(1, steps - warmup)
            match self.schedule.kind:
                case "constant":
                    factor = 1.0
                case "linear":
                    factor = 1 - done
                case "cosine":
                    factor = (1 + math.cos(math.pi * done)) / 2
            rates.append(self.lr * factor * min(1.0, (step + 1) / (warmup + 1)))
        return rates


class SuperpositionFiguresConfig(Config):
    """The panels of a sweep's figures."""

    panels: tuple[float, ...] = (1, 0.3, 0.05, 0.001)
    """Values of p_active whose matrix WᵀW is drawn. Values that the sweep does not have are skipped."""
    feature: int = 0
    """The ablated feature whose student's matrix WᵀW is drawn."""


def compiler() -> str | None:
    """Path of a C++ compiler on this machine, or None."""
    return next((path for path in map(shutil.which, COMPILERS) if path), None)
