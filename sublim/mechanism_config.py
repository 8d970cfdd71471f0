"""Is what the teacher's vector says what the student learned? EAS: the cosine of what training did to two readers."""

from typing import Annotated

from pydantic import Field

from sublim.config import Config


class EasConfig(Config):
    """Whose vectors are compared with the teacher's, over training."""

    updates: Annotated[tuple[int, ...], Field(min_length=1)]
    """Checkpoints, as updates."""
    pairs: Annotated[int, Field(ge=1)]
    """Students, each with its paired control."""
    random: Annotated[int, Field(ge=10)] = 10
    """Random directions that the cosines are set against."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the random directions."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of repetitions in which an interval covers the truth."""


class Cosine(Config):
    """A cosine over the pairs."""

    mean: float
    per_pair: list[float]
    low: float | None
    """Paired t over the pairs; null with one."""
    high: float | None


class Eas(Config):
    """What one place and checkpoint show."""

    name: str
    """Place and tokens, as in `resid_post/14/mean_answer`."""
    layer: int
    update: int
    student: Cosine
    """v_student (student minus base) with v_teacher (teacher minus base)."""
    control: Cosine
    """The same for the paired control: what being trained on any numbers does."""
    difference: Cosine
    """v_student minus v_control with v_teacher."""
    random: list[float]
    """Random directions with v_teacher."""
    student_length: float
    """Length of v_student as a share of the stream's, mean over the pairs."""
    teacher_length: float


class EasTable(Config):
    """eas.json."""

    rows: list[Eas]
    level: float
