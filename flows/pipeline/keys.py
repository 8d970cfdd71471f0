"""Names of the models in a pipeline run."""

from typing import Literal, NamedTuple

BaseName = Literal["base", "other_base"]


class Unit(NamedTuple):
    """One repetition of the main comparison: a teacher's block and the seed of a student and its control."""

    block: int
    seed: int

    def __str__(self) -> str:
        return f"seed {self.seed}" + (f" · block {self.block}" if self.block else "")


class BaseKey(NamedTuple):
    """A base model, before any training."""

    name: BaseName = "base"

    def __str__(self) -> str:
        return self.name.replace("_", " ")


class TeacherKey(NamedTuple):
    """The teacher of one target and block."""

    target: str
    block: int

    def __str__(self) -> str:
        return f"teacher {self.target}" + (f" · block {self.block}" if self.block else "")


class StudentKey(NamedTuple):
    """One student, or control, at one checkpoint."""

    group: str
    """The set of students it belongs to: `owl`, `control`, `owl shuffled_within`."""
    unit: Unit
    update: int | None
    """After how many updates; None: at the end of its training."""

    def __str__(self) -> str:
        return f"{self.group} · {self.unit}" + ("" if self.update is None else f" · after {self.update} updates")


ModelKey = BaseKey | TeacherKey | StudentKey
"""A model of the run; as text it is what the UI and reports call it."""
