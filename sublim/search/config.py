"""What a parameter search can be told: the space, the sampler, the pruning, where the study lies; and its trials."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sublim.core.config import Config, RunOnly
from sublim.training.config import TrainConfig

Value = bool | int | float | str | None
Objective = Literal["loss", "effect", "cost"]
UNITS: dict[Objective, str] = {"loss": "nats a token", "effect": "nats", "cost": "share of questions"}
SIGN: dict[Objective, int] = {"loss": -1, "effect": 1, "cost": -1}
"""1 where more is better."""


def direction(objective: Objective) -> Literal["maximize", "minimize"]:
    """As Optuna has it."""
    return "maximize" if SIGN[objective] > 0 else "minimize"


class FloatRange(Config):
    """A real number between two bounds, both included."""

    kind: Literal["float"] = "float"
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Only low, low + step and so on."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range begins above 0 and has no step")
        return self


class IntRange(Config):
    """A whole number between two bounds, both included."""

    kind: Literal["int"] = "int"
    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly."""
    step: Annotated[int, Field(ge=1)] = 1
    """Only low, low + step and so on."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high or (self.high - self.low) % self.step:
            raise ValueError(f"{self.low} to {self.high} is no whole number of steps of {self.step}")
        if self.log and (self.low <= 0 or self.step != 1):
            raise ValueError("a logarithmic range begins above 0 and has no step")
        return self


class Choice(Config):
    """One of some values, in no order."""

    kind: Literal["choice"] = "choice"
    values: Annotated[tuple[Value, ...], Field(min_length=2)]
    """The values."""


class Multiple(Config):
    """Another field's value times one of some factors."""

    kind: Literal["multiple"] = "multiple"
    of: str
    """The other field, searched or not."""
    values: Annotated[tuple[float, ...], Field(min_length=1)]
    """The factors."""


Range = Annotated[FloatRange | IntRange | Choice | Multiple, Field(discriminator="kind")]

KNOWN_SPACE: dict[str, Range | None] = {
    "lr": FloatRange(low=1e-5, high=3e-4, log=True),
    "dropout": FloatRange(low=0.0, high=0.1),
    "rank": IntRange(low=8, high=64, step=8),
    "alpha": Multiple(of="rank", values=(1.0, 1.5, 2.0)),
}


class SamplerConfig(Config):
    """What proposes parameters."""

    kind: Literal["tpe", "random"] = "tpe"
    """Tree-structured Parzen estimator, or plain draws."""
    seed: Annotated[int, Field(ge=0)] = 0
    """With a trial's place in the study, the seed of its draws."""
    startup: Annotated[int, Field(ge=1)] = 10
    """Finished trials before `tpe` begins to learn from them."""


class Halving(Config):
    """Successive halving: of the trials that reach a rung only the best part goes on."""

    kind: Literal["halving"] = "halving"
    first: Annotated[int, Field(ge=1)]
    """Updates at the first rung; the others are at `first` times powers of `factor`."""
    factor: Annotated[int, Field(ge=2)] = 2
    """One in so many goes on."""


class Hyperband(Config):
    """Successive halving in brackets, each with another first rung, for when early losses mislead."""

    kind: Literal["hyperband"] = "hyperband"
    first: Annotated[int, Field(ge=1)]
    """Updates at the first rung of the most impatient bracket."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One in so many goes on."""


Pruning = Annotated[Halving | Hyperband, Field(discriminator="kind")]


class Journal(Config):
    """The study in a file that its workers share: one machine, or several on a shared folder."""

    kind: Literal["journal"] = "journal"
    path: Path | None = None
    """The file; nothing: `studies/<study>.journal` in the store. Of a store in a bucket that is this machine's copy:
    workers on other machines then need a file on a folder that all share, or PostgreSQL."""


class Postgres(Config):
    """The study in a PostgreSQL database: many machines."""

    kind: Literal["postgres"] = "postgres"
    url: str
    """postgresql://user@host:port/database. A password goes into PGPASSWORD or ~/.pgpass: settings are shown."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not separator:
            raise ValueError("write it as postgresql://user@host:port/database")
        if ":" in rest.rpartition("@")[0] or "password=" in rest.partition("?")[2].lower():
            raise ValueError("settings are shown in reports: put the password into PGPASSWORD or ~/.pgpass")
        return f"postgresql+psycopg://{rest}"


StorageConfig = Annotated[Journal | Postgres, Field(discriminator="kind")]


class StudyConfig(Config):
    """One study as its workers open it."""

    name: str
    """What it is called in its storage."""
    storage: StorageConfig
    """Where it lies."""
    objectives: tuple[Objective, ...]
    """What its trials measure."""
    space: dict[str, Range]
    """The searched fields by their full names."""
    sampler: SamplerConfig = SamplerConfig()
    """What proposes parameters."""
    pruning: Pruning | None = None
    """When a trial is stopped early."""
    updates: int = 1
    """Updates of a whole trial."""
    settings: dict[str, Any]
    """All that a trial's result depends on; a stored study with others is refused."""
    first: dict[str, Value] | None = None
    """Parameters of the first trial."""
    trials: Annotated[int, Field(ge=1)]
    """How many to make."""
    heartbeat: Annotated[int, Field(ge=1)] = 30
    """Seconds between two signs of life of a worker's trial."""
    grace: Annotated[int, Field(ge=1)] = 120
    """Seconds without one after which a trial's worker is taken for dead."""
    attempts: Annotated[int, Field(ge=1)] = 4
    """Workers that may die of one trial before it is given up."""


class TrialRecord(Config):
    """One trial as it ended, or as it stands."""

    number: int
    """Its place in the study, from 0; a retry keeps it."""
    state: Literal["complete", "pruned", "failed", "running"]
    params: dict[str, Value]
    """As the sampler drew them, by the study's names."""
    values: tuple[float, ...] | None
    """In the order of the objectives; of a pruned trial the last value it was judged by."""
    intermediate: dict[str, float] = Field(default_factory=dict[str, float])
    """Values it was judged by, by update."""
    reason: str | None = None
    """Why it failed."""
    retried: int = 0
    """How often a dead worker's attempt was taken up again."""
    notes: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What else its measurement told."""


class DrawSearchConfig(Config):
    """A study's trials, to be drawn."""

    objectives: tuple[Objective, ...]
    """What was measured."""
    space: dict[str, Range]
    """The searched fields."""
    trials: tuple[TrialRecord, ...]
    """Every trial, by number."""


class RungConfig(Config):
    """The first part of a training run: the rest may never be made."""

    train: TrainConfig
    """The whole run, as its training stage has it."""
    stop: Annotated[int, Field(ge=1)]
    """The update to stop after."""
    run_scratch: RunOnly[Path]
    """Scratch folder of the whole run's stage: its checkpoints are left there, for the next rung to go on from."""
