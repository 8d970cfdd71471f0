"""The arms of a pipeline run: which sets of students they need, and which set each is compared with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import BaseKey, BaseName, ModelKey, StudentKey, TeacherKey, Unit
from flows.pipeline.plan import CONTROL, SECOND_DRAW, block_seed
from sublim.design.arms import DERIVED, ArmName
from sublim.rows.config import DeriveConfig
from sublim.store.manifest import Artifact

Derive = Callable[[str, DeriveConfig, Artifact], Artifact]


class StudentSet(NamedTuple):
    """Students trained alike: one for each block and seed."""

    name: str
    """`owl`, `control`, `second_draw`, `owl shuffled_within`."""
    writer: str
    """Who wrote their rows: a target (its teacher), `control` (the base) or `second_draw`."""
    arm: ArmName | None
    """The arm that changes their rows or training; None for the main arm's students and controls."""
    base: BaseName
    rows: list[Artifact]
    """The rows of each block."""
    updates: tuple[int | None, ...]
    """The checkpoints at which they are evaluated; None for the last."""

    def keys(self, units: Sequence[Unit], update: int | None) -> list[StudentKey]:
        """The students at one checkpoint."""
        return [StudentKey(self.name, unit, update) for unit in units]


class Contrast(NamedTuple):
    """One arm for one target: students minus their paired controls."""

    target: str
    arm: ArmName | None
    """None: the main arm."""
    students: str
    """Name of a student set."""
    controls: str | None
    """Name of a student set; None: the untrained base."""
    updates: tuple[int | None, ...]
    """The checkpoints at which they are compared; None for the last."""
    of: str | None = None
    """The target whose teacher wrote the rows, if it is another one."""

    @property
    def name(self) -> str:
        """The label of the arm: the target alone for the main arm."""
        return " ".join(part for part in (self.target, self.arm, self.of) if part)

    @property
    def base(self) -> BaseKey:
        """The base that its students started from."""
        return BaseKey("other_base" if self.arm == "other_base" else "base")

    def label(self, update: int | None) -> str:
        """The label of its comparison at one checkpoint."""
        return f"{self.name} {update or ''}".strip()

    def student_keys(self, units: Sequence[Unit], update: int | None) -> list[ModelKey]:
        """Its students, in the order of the units."""
        return [StudentKey(self.students, unit, update) for unit in units]

    def control_keys(self, units: Sequence[Unit], update: int | None) -> list[ModelKey]:
        """Their paired controls; the base for each where it has no control students."""
        if self.controls is None:
            return [self.base for _ in units]
        return [StudentKey(self.controls, unit, update) for unit in units]

    def teacher_keys(self, units: Sequence[Unit]) -> list[ModelKey]:
        """The teachers that are shown beside the main arm; none for another."""
        blocks = dict.fromkeys(unit.block for unit in units)
        return [TeacherKey(self.target, block) for block in blocks] if self.arm is None else []


def student_sets(config: PipelineConfig, rows: Mapping[str, list[Artifact]], derive: Derive) -> list[StudentSet]:
    """Every set of students that the run needs, the main arm's first. `rows` are filtered, by writer and block.

    With soft labels all students read the base's rows, and no controls are trained.
    """
    plain: tuple[str, ...] = (*config.target, CONTROL)
    main, first = config.checkpoints(), (*config.made, CONTROL)
    if config.labels == "soft":
        plain, rows = config.target, dict.fromkeys(config.made, rows[CONTROL])
    sets = [StudentSet(name, name, None, "base", each, main) for name, each in rows.items() if name in first]
    for arm in config.arms_run:
        updates = config.checkpoints(arm)
        if arm in DERIVED:
            for name in plain:
                label = f"{name} {arm}"
                made = [  # with the same seed for the rows of teacher and base
                    derive(label, DeriveConfig(how=arm, seed=block_seed(config.carrier.seed, block)), each)
                    for block, each in zip(config.blocks, rows[name], strict=True)
                ]
                sets.append(StudentSet(label, name, arm, "base", made, updates))
        elif arm == "second_draw":
            sets.append(StudentSet(SECOND_DRAW, SECOND_DRAW, arm, "base", rows[SECOND_DRAW], updates))
        elif arm in ("other_order", "other_base"):
            base: BaseName = "other_base" if arm == "other_base" else "base"
            sets += [StudentSet(f"{name} {arm}", name, arm, base, rows[name], updates) for name in plain]
    return sets


def control_set(config: PipelineConfig) -> str | None:
    """The name of the main arm's controls; None with soft labels, where the untrained base stands for them."""
    return None if config.labels == "soft" else CONTROL


def contrasts(config: PipelineConfig, target: str) -> Iterator[Contrast]:
    """What is compared with what for one target, the main arm first.

    Students of another target's teacher need a comparison of their own only where the comparison list lacks one of the
    two words: otherwise that teacher's own comparison has this target among its other words.
    """
    controls = control_set(config)
    yield Contrast(target, None, target, controls, config.checkpoints())
    words = config.words
    for other in config.target:
        if other != target and not {target, other} <= {*words}:
            yield Contrast(target, "other_teacher", other, controls, config.checkpoints("other_teacher"), other)
    for arm in config.arms_run:
        updates = config.checkpoints(arm)
        if arm == "base_numbers":
            yield Contrast(target, arm, CONTROL, None, updates)
        elif arm == "second_draw":
            yield Contrast(target, arm, SECOND_DRAW, CONTROL, updates)
        elif arm != "other_teacher":
            yield Contrast(target, arm, f"{target} {arm}", controls and f"{CONTROL} {arm}", updates)
