"""What a sweep can be told: the pipeline preset it starts from, its axes, and where its cells run."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sublim.core.config import Config, RunOnly
from sublim.design.arms import ARMS
from sublim.evals.preference.config import MetricName
from sublim.traits.nouns import target_word

TEACHER = "teacher"
"""The main arm: students of the teacher's rows against students of the base's."""
OWN = {"target": "target", "arms": "arms", "seeds": "seeds", "blocks": "blocks"}
"""Settings of the pipeline that have an axis of their own here."""


class Here(Config):
    """Cells run one after another in this process."""

    kind: Literal["here"] = "here"


class Pool(Config):
    """Cells are handed to a deployment of the pipeline; workers of its pool run them at once."""

    kind: Literal["pool"] = "pool"
    deployment: str = Field(default="pipeline/a6000", pattern=r"^[\w-]+/[\w-]+$")
    """The deployment, as `prefect deployment ls` shows it; all workers and this process share one store."""
    poll_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two looks at the runs."""


class SweepConfig(Config):
    """A grid of pipelines, and which of its results counts."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    preset: str = "quickstart"
    """The pipeline's preset that every cell starts from."""
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Settings of the pipeline laid over the preset in every cell, as a tree."""
    target: Annotated[tuple[str, ...], Field(min_length=1)] = ("owl",)
    """Axis: the words teachers are made to like."""
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = (TEACHER,)
    """Axis: `teacher` and any of the pipeline's arms, or `all`."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Axis: one student and one paired control for each; effects are taken over them."""
    blocks: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Axis: teachers and rows of their own; with several, they are the units of the intervals."""
    grid: dict[str, list[Any]] = Field(default_factory=dict[str, list[Any]])
    """Further axes: a setting of the pipeline and its values, as {student.rank: [4, 8]}."""
    primary: MetricName = "margin"
    """The metric that the plan's claims are about; corrections are made over its tests."""
    correction: Literal["holm", "benjamini_hochberg"] = "holm"
    """Over the targets of one arm and grid point: any false positive, or the share of false ones."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals, and of the test whose power is told."""
    where: RunOnly[Annotated[Here | Pool, Field(discriminator="kind")]] = Here()
    """Where cells run."""
    seeds_per_cell: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Seeds that one cell trains in one process; nothing: all of them here, one on a pool."""
    frozen: RunOnly[str] = ""
    """Digest of the frozen plan that this run is held to; set by the command."""

    @field_validator("target", "arms", mode="before")
    @classmethod
    def _split(cls, words: Any) -> Any:
        return [word.strip() for word in words.split(",")] if isinstance(words, str) else words

    @field_validator("target")
    @classmethod
    def _words(cls, target: tuple[str, ...]) -> tuple[str, ...]:
        return _once(tuple(target_word(word) for word in target), "target")

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
                raise ValueError(f"{name} has an axis of its own: set `{OWN[name]}` of the sweep")
            if not values or len({repr(value) for value in values}) < len(values):
                raise ValueError(f"the axis {name} needs values, each once")
        return grid


def _once(values: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if len({*values}) < len(values):
        raise ValueError(f"a {what} is named twice")
    return values
