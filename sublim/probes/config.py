"""How linear probes are fitted and what is said of them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.activations.config import ReadAt
from sublim.core.config import Config, RunOnly
from sublim.residual.edits import Site


class AdamFit(Config):
    """Short stochastic training, ended where the validation loss was lowest."""

    kind: Literal["adam"] = "adam"
    epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over the training split."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Step size."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Added to the gradient times the weight, as torch's Adam has it."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows in a step."""


class FullFit(Config):
    """The minimum of mean loss + l2/2 ‖w‖² (the intercept free) by L-BFGS on the whole training split."""

    kind: Literal["full"] = "full"
    l2: Annotated[float, Field(gt=0)] = 1e-2
    """Penalty; scikit-learn's C is 1 / (l2 · rows)."""
    updates: Annotated[int, Field(ge=1)] = 500
    """Most iterations."""


class ProbesConfig(Config):
    """Probes on every layer that was read and on all of them together."""

    site: Site = "resid_post"
    """Which site's activations."""
    read_at: ReadAt = "mean_answer"
    """Which tokens' activations."""
    together: bool = True
    """Also one probe on all layers, side by side."""
    multiclass: bool = True
    """With several targets, also one probe that tells control and all targets apart."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Each splits anew."""
    fit: Annotated[AdamFit | FullFit, Field(discriminator="kind")] = AdamFit()
    """How weights are found."""
    train: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of the prompts to train on."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the prompts that choose the epoch; the rest is the test."""
    answers: Annotated[int, Field(ge=1)] = 1
    """Answers to each prompt: row ids count answers, so that the prompt is id // answers."""
    draws: Annotated[int, Field(ge=100)] = 1_000
    """Bootstrap draws behind the intervals."""
    memory_gib: RunOnly[Annotated[float, Field(gt=0)]] = 1.0
    """What the probes fitted at once may take."""

    @model_validator(mode="after")
    def _test_is_left(self) -> Self:
        if self.train + self.validation >= 0.999:
            raise ValueError("train and validation leave nothing to test on")
        if self.read_at == "all":
            raise ValueError("a probe takes one vector a row: read means or last tokens")
        return self


class ProbeSummary(Config):
    """One number over all seeds."""

    layer: int
    """-1 for all layers together."""
    target: str
    metric: Literal["accuracy", "auc", "precision", "recall", "f1", "shuffled", "selectivity"]
    """shuffled: accuracy with labels that were shuffled; selectivity: accuracy minus that."""
    estimate: float
    low: float
    high: float
    prompts: int
    """Prompts that were in some seed's test split: the interval's units."""
    seeds: int
    chance: float
    """Accuracy of always naming the commonest class."""


class ProbeSummaries(Config):
    """summary.json of `fit_probes`."""

    about: str
    """What the intervals cover."""
    rows: list[ProbeSummary]


class ProbeFiguresConfig(Config):
    """The figure of a run."""

    width: Annotated[float, Field(gt=0)] = 4.0
    """Of one target's panel, in inches."""
