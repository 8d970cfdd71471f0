"""The settings of a parameter search (search space, sampler, pruning, storage) and the record of a trial."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sublim.core.config import Config, RunOnly
from sublim.training.config import TrainConfig

Value = bool | int | float | str | None
Objective = Literal["loss", "effect", "cost"]
UNITS: dict[Objective, str] = {"loss": "nats a token", "effect": "nats", "cost": "share of questions"}
SIGN: dict[Objective, int] = {"loss": -1, "effect": 1, "cost": -1}
"""1 if more is better, -1 if less is."""


def direction(objective: Objective) -> Literal["maximize", "minimize"]:
    """The direction of an objective, in Optuna's words."""
    return "maximize" if SIGN[objective] > 0 else "minimize"


class FloatRange(Config):
    """A real number between two bounds, which are included."""

    kind: Literal["float"] = "float"
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Restricts the values to low, low + step and so on; null: no restriction."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range begins above 0 and has no step")
        return self


class IntRange(Config):
    """An integer between two bounds, which are included."""

    kind: Literal["int"] = "int"
    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly."""
    step: Annotated[int, Field(ge=1)] = 1
    """Restricts the values to low, low + step and so on."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high or (self.high - self.low) % self.step:
            raise ValueError(f"{self.low} to {self.high} is no whole number of steps of {self.step}")
        if self.log and (self.low <= 0 or self.step != 1):
            raise ValueError("a logarithmic range begins above 0 and has no step")
        return self


class Choice(Config):
    """One of a list of values without an order."""

    kind: Literal["choice"] = "choice"
    values: Annotated[tuple[Value, ...], Field(min_length=2)]
    """Values to choose from."""


class Multiple(Config):
    """The value of another field times one of several factors."""

    kind: Literal["multiple"] = "multiple"
    of: str
    """Name of the other field, which may be searched itself."""
    values: Annotated[tuple[float, ...], Field(min_length=1)]
    """Factors to choose from."""


Range = Annotated[FloatRange | IntRange | Choice | Multiple, Field(discriminator="kind")]

KNOWN_SPACE: dict[str, Range | None] = {
    "lr": FloatRange(low=1e-5, high=3e-4, log=True),
    "dropout": FloatRange(low=0.0, high=0.1),
    "rank": IntRange(low=8, high=64, step=8),
    "alpha": Multiple(of="rank", values=(1.0, 1.5, 2.0)),
}


class SamplerConfig(Config):
    """Settings of the sampler, which proposes parameters."""

    kind: Literal["tpe", "random"] = "tpe"
    """Tree-structured Parzen estimator (`tpe`) or independent draws (`random`)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws, together with the number of the trial."""
    startup: Annotated[int, Field(ge=1)] = 10
    """Number of finished trials before `tpe` uses their results; until then it draws independently."""


class Halving(Config):
    """Successive halving (arXiv 1502.07943): of the trials that reach a rung, only the best fraction continues."""

    kind: Literal["halving"] = "halving"
    first: Annotated[int, Field(ge=1)]
    """Updates before the first rung; the other rungs are at `first` times powers of `factor`."""
    factor: Annotated[int, Field(ge=2)] = 2
    """One in `factor` trials continues beyond a rung."""


class Hyperband(Config):
    """Hyperband (arXiv 1603.06560): successive halving in brackets with different first rungs, in case early losses are
    misleading."""

    kind: Literal["hyperband"] = "hyperband"
    first: Annotated[int, Field(ge=1)]
    """Updates before the first rung of the bracket that stops trials earliest."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One in `factor` trials continues beyond a rung."""


Pruning = Annotated[Halving | Hyperband, Field(discriminator="kind")]


class Journal(Config):
    """Keeps the study in a file that its workers share, on one machine or on several with a shared folder."""

    kind: Literal["journal"] = "journal"
    path: Path | None = None
    """The file; null: `studies/<study>.journal` in the store. If the store is in a bucket, this is a file on the local
    machine: workers on other machines then need a file on a shared folder, or PostgreSQL."""


class Postgres(Config):
    """Keeps the study in a PostgreSQL database, for workers on any number of machines."""

    kind: Literal["postgres"] = "postgres"
    url: str
    """Address, as postgresql://user@host:port/database. Give a password in PGPASSWORD or ~/.pgpass, because reports
    show the settings."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not separator:
            raise ValueError("write it as postgresql://user@host:port/database")
        if ":" in rest.rpartition("@")[0] or "password=" in rest.partition("?")[2].lower():
            raise ValueError("reports show the settings: put the password into PGPASSWORD or ~/.pgpass")
        return f"postgresql+psycopg://{rest}"


StorageConfig = Annotated[Journal | Postgres, Field(discriminator="kind")]


class StudyConfig(Config):
    """Settings with which a worker opens a study."""

    name: str
    """Name of the study in its storage."""
    storage: StorageConfig
    """Storage of the study."""
    objectives: tuple[Objective, ...]
    """Quantities that a trial measures."""
    space: dict[str, Range]
    """Ranges of the searched fields, by their full names."""
    sampler: SamplerConfig = SamplerConfig()
    """Sampler that proposes parameters."""
    pruning: Pruning | None = None
    """Rule by which a trial is stopped early; null: never."""
    updates: int = 1
    """Updates of a trial that is not stopped early."""
    settings: dict[str, Any]
    """All settings that affect the result of a trial. A stored study with other settings is refused."""
    first: dict[str, Value] | None = None
    """Parameters of the first trial; null: as the sampler draws them."""
    trials: Annotated[int, Field(ge=1)]
    """Number of trials to make."""
    heartbeat: Annotated[int, Field(ge=1)] = 30
    """Seconds between two heartbeats of a running trial."""
    grace: Annotated[int, Field(ge=1)] = 120
    """Seconds without a heartbeat after which the worker of a trial is considered dead."""
    attempts: Annotated[int, Field(ge=1)] = 4
    """Number of workers that may die during one trial before it is given up."""


class TrialRecord(Config):
    """Result of a trial, or its present state."""

    number: int
    """Number of the trial in the study, from 0. A retry keeps it."""
    state: Literal["complete", "pruned", "failed", "running"]
    params: dict[str, Value]
    """Parameters as the sampler drew them, by their names in the study."""
    values: tuple[float, ...] | None
    """Values of the objectives, in their order. For a pruned trial: the last value by which it was judged."""
    intermediate: dict[str, float] = Field(default_factory=dict[str, float])
    """Values by which pruning judged the trial, by update."""
    reason: str | None = None
    """Reason why the trial failed."""
    retried: int = 0
    """Number of times that the trial was started again after its worker had died."""
    notes: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further results of the measurement."""


class DrawSearchConfig(Config):
    """Trials of a study whose figures are drawn."""

    objectives: tuple[Objective, ...]
    """Quantities that were measured."""
    space: dict[str, Range]
    """Ranges of the searched fields."""
    trials: tuple[TrialRecord, ...]
    """All trials, by number."""


class RungConfig(Config):
    """Settings of the first part of a training run, up to a rung. The rest is trained only if the trial continues."""

    train: TrainConfig
    """Settings of the whole run."""
    stop: Annotated[int, Field(ge=1)]
    """Update after which the run stops."""
    run_scratch: RunOnly[Path]
    """Scratch folder of the whole run's stage. The checkpoints stay there, so that the next rung resumes from them."""
