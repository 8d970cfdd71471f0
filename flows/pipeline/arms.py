"""The arms of a pipeline run: which sets of students they need, and which set each is compared with."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import CONTROL, SECOND_DRAW, block_seed, words_of
from sublim.design.arms import DERIVED, ArmName
from sublim.rows.config import DeriveConfig
from sublim.store.manifest import Artifact
from sublim.traits.questions import Questions

BaseName = Literal["base", "other_base"]
Derive = Callable[[str, DeriveConfig, Artifact], Artifact]


class StudentSet(NamedTuple):
    """Students trained alike: one for each block and seed."""

    name: str
    """`owl`, `control`, `second_draw`, `owl shuffled_within`."""
    writer: str
    """Whose rows, before anything was done to them: a target, `control` or `second_draw`."""
    arm: ArmName | None
    """What sets their training apart; None for the main arm's students and controls."""
    base: BaseName
    rows: list[Artifact]
    """By block."""


class Contrast(NamedTuple):
    """One arm for one target: students minus their paired controls."""

    target: str
    arm: ArmName | None
    """None: the main arm."""
    students: str
    """Name of a student set."""
    controls: str | None
    """Name of a student set; None: the untrained base."""
    of: str | None = None
    """Whose teacher wrote the rows, where it is another target's."""

    @property
    def name(self) -> str:
        """As the arm is labelled: the target alone for the main arm."""
        return " ".join(part for part in (self.target, self.arm, self.of) if part)


def arms_run(config: PipelineConfig) -> tuple[ArmName, ...]:
    """The arms that this run trains and evaluates."""
    return tuple(arm for arm in config.arms if arm not in config.held_back)


def student_sets(config: PipelineConfig, rows: dict[str, list[Artifact]], derive: Derive) -> list[StudentSet]:
    """Every set of students that the run needs, the main arm's first. `rows` are filtered, by writer and block."""
    plain = (*config.target, CONTROL)
    sets = [StudentSet(name, name, None, "base", each) for name, each in rows.items() if name in plain]
    for arm in arms_run(config):
        if arm in DERIVED:
            for name in plain:
                label = f"{name} {arm}"
                made = [
                    derive(label, derive_config(config, arm, block), each)
                    for block, each in zip(config.blocks, rows[name], strict=True)
                ]
                sets.append(StudentSet(label, name, arm, "base", made))
        elif arm == "second_draw":
            sets.append(StudentSet(SECOND_DRAW, SECOND_DRAW, arm, "base", rows[SECOND_DRAW]))
        elif arm in ("other_order", "other_base"):
            base: BaseName = "other_base" if arm == "other_base" else "base"
            sets += [StudentSet(f"{name} {arm}", name, arm, base, rows[name]) for name in plain]
    return sets


def derive_config(config: PipelineConfig, arm: ArmName, block: int) -> DeriveConfig:
    """How an arm's rows are derived in one block: with one seed for the teacher's and the base's."""
    return DeriveConfig.model_validate({"how": arm, "seed": block_seed(config.carrier.seed, block)})


def contrasts(config: PipelineConfig, questions: Questions, target: str) -> Iterator[Contrast]:
    """What is compared with what for one target, the main arm first.

    Students of another target's teacher need a comparison of their own only where the comparison list lacks one of the
    two words: otherwise that teacher's own comparison has this target among its other words.
    """
    yield Contrast(target, None, target, CONTROL)
    words = words_of(config, questions)
    for other in config.target:
        if other != target and not {target, other} <= {*words}:
            yield Contrast(target, "other_teacher", other, CONTROL, of=other)
    for arm in arms_run(config):
        if arm == "base_numbers":
            yield Contrast(target, arm, CONTROL, None)
        elif arm == "second_draw":
            yield Contrast(target, arm, SECOND_DRAW, CONTROL)
        elif arm != "other_teacher":
            yield Contrast(target, arm, f"{target} {arm}", f"{CONTROL} {arm}")
