"""The settings of linear probes, and the shape of their summary."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.activations.config import ReadAt
from sublim.core.config import Config, RunOnly
from sublim.residual.edits import Site


class AdamFit(Config):
    """Fits with Adam on mini-batches, and keeps the weights of the epoch with the lowest validation loss."""

    kind: Literal["adam"] = "adam"
    epochs: Annotated[int, Field(ge=1)] = 20
    """Number of passes over the training rows."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty: this number times the weights is added to the gradient, as in torch's Adam."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows in one step."""


class FullFit(Config):
    """Minimises mean loss + l2/2 ‖w‖² on all training rows with L-BFGS; the intercept is not penalised."""

    kind: Literal["full"] = "full"
    l2: Annotated[float, Field(gt=0)] = 1e-2
    """Strength of the L2 penalty; scikit-learn's C is 1 / (l2 · rows)."""
    updates: Annotated[int, Field(ge=1)] = 500
    """Largest number of iterations."""


class ProbesConfig(Config):
    """Settings of the probes on every layer and on all layers together."""

    site: Site = "resid_post"
    """Site in the model whose activations are used."""
    read_at: ReadAt = "mean_answer"
    """Tokens whose activations are used."""
    together: bool = True
    """Whether to add one probe on the concatenated activations of all layers."""
    multiclass: bool = True
    """Whether, with several targets, to add one probe that tells the control and all targets apart."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Seeds, each with its own split of the prompts."""
    fit: Annotated[AdamFit | FullFit, Field(discriminator="kind")] = AdamFit()
    """Method by which the weights are fitted."""
    train: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of the prompts for training."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the prompts for choosing the epoch. The remaining prompts are the test split."""
    answers: Annotated[int, Field(ge=1)] = 1
    """Number of answers to each prompt (`carrier.sampling.n`). All answers to one prompt go into the same split."""
    draws: Annotated[int, Field(ge=100)] = 1_000
    """Bootstrap draws for the intervals."""
    memory_gib: RunOnly[Annotated[float, Field(gt=0)]] = 1.0
    """Memory for the probes that are fitted at the same time, in GiB."""

    @model_validator(mode="after")
    def _test_is_left(self) -> Self:
        if self.train + self.validation >= 0.999:
            raise ValueError("train and validation leave no prompts for the test: lower one of them")
        if self.read_at == "all":
            raise ValueError("a probe takes one vector per row: set read_at to a mean or a last token")
        return self


class ProbeSummary(Config):
    """One metric of one probe, over all seeds."""

    layer: int
    """Layer, counted from 0; -1 for all layers together."""
    target: str
    metric: Literal["accuracy", "auc", "precision", "recall", "f1", "shuffled", "selectivity"]
    """`shuffled` is the accuracy with shuffled labels; `selectivity` is the accuracy minus that (arXiv 1909.03368)."""
    estimate: float
    low: float
    high: float
    prompts: int
    """Prompts that were in the test split of at least one seed. They are the units of the interval."""
    seeds: int
    chance: float
    """Accuracy of always predicting the most frequent class."""


class ProbeSummaries(Config):
    """Contents of summary.json, which `fit_probes` writes."""

    about: str
    """Statement of what the intervals cover."""
    rows: list[ProbeSummary]


class ProbeFiguresConfig(Config):
    """Settings of the figure of a run."""

    width: Annotated[float, Field(gt=0)] = 4.0
    """Width of one target's panel, in inches."""
