"""Configs of the superposition experiments: which models, trained how, on what grid."""

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
    """constant, or falling to 0 at the last step along a line or half a cosine."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the rate first rises from 0."""


class SuperpositionConfig(Config):
    """A grid of autoencoders x̂ = relu(W Wᵀ x + b): p_active × ablated features (or auxiliary features) × seeds."""

    features: int = Field(default=20, ge=1)
    """Features n of the data."""
    hidden: int = Field(default=5, ge=1)
    """Dimensions m they are squeezed into."""
    p_active: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (
        1,
        0.9,
        0.8,
        0.7,
        0.6,
        0.5,
        0.3,
        0.1,
        0.05,
        0.01,
        0.001,
    )
    """Probabilities that a feature is active in an example; then it is uniform on [0, 1]."""
    ablated: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4)
    """Ablation: for each of these features, one student that learns its teacher's outputs without it in the loss."""
    auxiliary: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """For each k, a teacher with k more features, which it never learns, and a student that learns only those."""
    seeds: tuple[int, ...] = (0,)
    """One repetition of everything per seed: another initialisation and other data."""
    other_initialisation: bool = True
    """Also train every student from an initialisation that is not its teacher's: the control."""
    importance: float = Field(default=0.7, gt=0)
    """Weight of feature i in the loss is importance to the power i."""
    batch_size: int = Field(default=1024, gt=0, multiple_of=32)
    """Examples per step; the loss is summed over them."""
    steps: int = Field(default=10_000, ge=1)
    """Steps of every teacher and every student."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay, on weights and biases."""
    schedule: Schedule = Schedule()
    loss_every: int = Field(default=100, ge=1)
    """Steps between two recorded losses."""
    engine: Literal["auto", "cuda", "native", "torch"] = "auto"
    """cuda: tensors in a CUDA graph. native: C++ compiled at first use. torch: tensors on the CPU."""
    chunk: RunOnly[int | None] = None
    """Groups (a p_active and a seed) in one tensor program; None fits the memory."""
    checkpoint_every: RunOnly[int] = 1000
    """Steps between two checkpoints, from which a killed sweep resumes."""
    threads: RunOnly[int | None] = None
    """Threads of the native engine; None is torch's number."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        missing = [i for i in self.ablated if i >= self.features]
        if missing:
            raise ValueError(f"ablated {missing}: the model has features 0 to {self.features - 1}")
        large = [k for k in self.auxiliary if k > self.features]
        if large:
            raise ValueError(f"auxiliary {large}: at most as many auxiliary features as features ({self.features})")
        for name in ("p_active", "ablated", "auxiliary", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names a value twice: {values}")
        if not self.p_active or not self.seeds or not (self.ablated or self.auxiliary):
            raise ValueError("nothing to train: give p_active, seeds, and ablated or auxiliary features")
        return self

    def resolved(self) -> Self:
        """The engine this machine has: CUDA, else a C++ compiler, else torch alone."""
        if self.engine != "auto":
            return self
        return self.model_copy(update={"engine": "cuda" if gpu() else "native" if compiler() else "torch"})

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
    """Which panels the figures of a sweep show."""

    panels: tuple[float, ...] = (1, 0.3, 0.05, 0.001)
    """Values of p_active whose WᵀW is drawn; those that the sweep lacks are left out."""
    feature: int = 0
    """The ablated feature whose WᵀW is drawn for the student."""


def compiler() -> str | None:
    """A C++ compiler of this machine, or None."""
    return next((path for path in map(shutil.which, COMPILERS) if path), None)
