"""Settings of a sweep: the pipeline preset that it starts from, its axes, and where its cells run."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from flows.pipeline.config import Words, split
from sublim.core.config import Config, RunOnly
from sublim.design.arms import ARMS
from sublim.evals.preference.config import Primary

TEACHER = "teacher"
"""The main comparison: students trained on the teacher's rows against students trained on the base's rows."""
OWN = ("target", "arms", "seeds", "blocks")
"""Settings of the pipeline that are axes of the sweep by the same name."""


class Here(Config):
    """The cells run one after another in this process."""

    kind: Literal["here"] = "here"


class Pool(Config):
    """The cells are runs of a deployment of the pipeline, and the workers of its pool run them in parallel."""

    kind: Literal["pool"] = "pool"
    deployment: str = Field(default="pipeline/a6000", pattern=r"^[\w-]+/[\w-]+$")
    """The deployment, as `prefect deployment ls` shows it. Its workers and this process must use the same store."""
    poll_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two queries of the states of the runs."""


class SweepConfig(Config):
    """Settings of a sweep."""

    about: RunOnly[str] = ""
    """One line that says what these settings are for."""
    preset: str = "quickstart"
    """The preset of the pipeline that every cell starts from."""
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Settings of the pipeline that replace those of the preset in every cell, as a nested mapping."""
    target: Annotated[Words, Field(min_length=1)] = ("owl",)
    """Axis: the target words, which teachers are made to prefer."""
    arms: Annotated[tuple[str, ...], BeforeValidator(split), Field(min_length=1)] = (TEACHER,)
    """Axis: `teacher`, which is the main comparison, and any arms of the pipeline; or `all`."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Axis: seeds. Each gives one student and its paired control; effects are averaged over them."""
    blocks: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Axis: blocks, each with its own teacher and rows. With several blocks, intervals are over blocks, not seeds."""
    grid: dict[str, list[Any]] = Field(default_factory=dict[str, list[Any]])
    """Further axes: settings of the pipeline with their values, as in {student.rank: [4, 8]}."""
    primary: Primary = "margin"
    """The primary metric. The correction for multiple tests covers the tests of this metric."""
    correction: Literal["holm", "benjamini_hochberg"] = "holm"
    """Correction for multiple tests over the targets of one arm and grid point. `holm` controls the chance of any false
    positive, `benjamini_hochberg` the expected share of false positives. The table also has Holm's correction over all
    of its tests, whatever is chosen here."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals and of the tests."""
    where: RunOnly[Annotated[Here | Pool, Field(discriminator="kind")]] = Here()
    """Where the cells run."""
    seeds_per_cell: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """How many seeds one cell trains. Null for all seeds when cells run here, and for one seed on a pool."""
    frozen: RunOnly[str] = ""
    """Digest of the frozen plan that this run must follow. `--freeze` and `--config` set it."""

    @field_validator("target")
    @classmethod
    def _words(cls, target: tuple[str, ...]) -> tuple[str, ...]:
        return _once(target, "target")

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if arms == ("all",):
            return (TEACHER, *ARMS)
        for arm in arms:
            if arm != TEACHER and arm not in ARMS:
                raise ValueError(f"there is no arm {arm!r}: there are {TEACHER}, {', '.join(ARMS)}")
        return _once(arms, "arm")

    @field_validator("seeds", "blocks")
    @classmethod
    def _distinct(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        return _once(numbers, "number")

    @field_validator("grid")
    @classmethod
    def _axes(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in grid.items():
            if name in OWN:
                raise ValueError(f"{name} has an axis of its own: set `{name}` of the sweep")
            if not values or len({repr(value) for value in values}) < len(values):
                raise ValueError(f"the axis {name} needs values, and no value twice")
        return grid


def _once(values: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if len({*values}) < len(values):
        raise ValueError(f"a {what} is named twice")
    return values
