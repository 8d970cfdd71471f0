"""What a pipeline run has made, by name: its teachers, answers, comparisons and exams."""

from typing import NamedTuple

from flows.pipeline.arms import BaseName, Contrast, StudentSet
from flows.pipeline.diagnostics import Diagnosed
from flows.pipeline.teachers import TeacherModel
from sublim.residual.edits import Steering
from sublim.store.manifest import Artifact


class Comparison(NamedTuple):
    """One arm's students against their controls, for one target after so many updates."""

    contrast: Contrast
    update: int | None
    artifact: Artifact

    @property
    def target(self) -> str:
        return self.contrast.target


class Examined(NamedTuple):
    """A model as it was asked for its likings: the same weights, checkpoint and system prompt answer the exam."""

    base: Artifact
    weights: Artifact | None = None
    update: int | None = None
    system: str | None = None
    steering: Steering | None = None
    vectors: Artifact | None = None


class Capability(NamedTuple):
    """One contrast on MMLU-Pro."""

    contrast: Contrast
    update: int | None
    artifact: Artifact


class Taught(NamedTuple):
    """A study up to its students, before anybody is asked anything."""

    bases: dict[BaseName, Artifact]
    teachers: dict[str, TeacherModel]
    raw: dict[str, list[Artifact]]
    rows: dict[str, list[Artifact]]
    sets: list[StudentSet]
    students: dict[str, list[Artifact]]


class Study(NamedTuple):
    """A finished study: everything the report shows."""

    bases: dict[BaseName, Artifact]
    teachers: dict[str, TeacherModel]
    raw: dict[str, list[Artifact]]
    """By target, `control` for the base's and `second_draw`: what was written, block by block."""
    rows: dict[str, list[Artifact]]
    """The same after the filter."""
    sets: list[StudentSet]
    asked: dict[str, Artifact]
    comparisons: list[Comparison]
    capability: list[Capability]
    """The same contrasts on MMLU-Pro; empty where it was not asked."""
    shifts: list[Capability]
    """The same contrasts by total variation from the base."""
    diagnosed: Diagnosed | None
    """The diagnostics that were asked for."""
    students: dict[str, list[Artifact]]
    """By set: one for each block and seed."""

    @property
    def base(self) -> Artifact:
        return self.bases["base"]
