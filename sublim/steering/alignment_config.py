"""Settings and results of the two alignments of students with their teacher."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config
from sublim.steering.config import MeanAt

Measure = Literal["alignment_paper", "alignment_above_control"]
"""alignment_paper: cosine of v_student and v_teacher at prompt tokens, after arXiv 2606.00995 (its code averages the
student's change over a number prompt's tokens and reads the teacher's at the prompt's last token).
alignment_above_control: cosine of v_student minus v_control and v_teacher, at answer tokens."""
ALONE = "there is one teacher: whether the alignment is specific to it cannot be judged"
SAME = "v_teacher lies within the other teachers' vectors: nothing of it is orthogonal to them"


class EasConfig(Config):
    """Which students' vectors are compared with the teachers', where, and after which updates."""

    measure: Measure
    """The cosine that is set beside every other teacher's."""
    student_at: MeanAt
    """Tokens at which students, controls and the base are read for v_student and v_control."""
    teacher_at: MeanAt
    """Tokens at which teachers and the base are read for v_teacher; alignment_paper may differ from `student_at`."""
    updates: Annotated[tuple[int, ...], Field(min_length=1)]
    """Checkpoints, as numbers of updates."""
    pairs: Annotated[int, Field(ge=1)]
    """Number of students, each with its paired control."""
    random: Annotated[int, Field(ge=10)] = 10
    """Number of random directions to compare the cosines with."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the random directions."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""

    @model_validator(mode="after")
    def _at_its_tokens(self) -> Self:
        end = "_prompt" if self.measure == "alignment_paper" else "_answer"
        if not (self.student_at.endswith(end) and self.teacher_at.endswith(end)):
            raise ValueError(f"{self.measure} is read at {end.strip('_')} tokens")
        return self


class Cosine(Config):
    """A cosine, averaged over pairs of student and control."""

    mean: float
    per_pair: list[float]
    low: float | None
    """Lower end of the t interval over pairs; null for a single pair. Pairs share their teacher: the interval says
    nothing of another teacher."""
    high: float | None


class Eas(Config):
    """The cosines with one teacher's vector at one place and checkpoint."""

    name: str
    """Place and tokens, as in `resid_post/14/mean_answer`; the tokens are those at which the student is read."""
    layer: int
    update: int
    student: Cosine
    """Cosine of v_student (student minus base) and v_teacher (teacher minus base)."""
    control: Cosine
    """The same for the paired controls: the effect of training on any numbers."""
    difference: Cosine
    """Cosine of v_student minus v_control and v_teacher."""
    random: list[float]
    """Cosines of random directions with v_teacher."""
    student_length: float
    """Norm of v_student divided by the mean norm of the residual stream, averaged over pairs."""
    teacher_length: float


class Alignment(Config):
    """One alignment at one place and checkpoint, beside the same students' alignment with all other teachers.

    Only a student that aligns with its own teacher more than with others (`above_others`), or with the part of its
    teacher's vector that no other teacher shares (`unique`), has learned something of that teacher in particular.
    """

    name: str
    layer: int
    update: int
    own: Cosine
    """With the vector of the teacher whose lists the students read."""
    others: dict[str, Cosine]
    """With every other teacher's vector, by target."""
    above_others: Cosine | None
    """`own` minus the mean of `others`, pair by pair; null with one teacher."""
    unique: Cosine | None
    """With v_unique, the part of the own teacher's vector that is orthogonal to all other teachers' vectors."""
    unique_share: float | None
    """Squared length of v_unique as a share of that of v_teacher."""
    teachers: dict[str, float]
    """Cosines of the own teacher's vector with every other teacher's: how much they have in common to begin with."""
    random: list[float]
    """Cosines of random directions with v_teacher."""
    reason: str | None = None
    """Why `above_others` or `unique` is missing."""


class EasTable(Config):
    """The content of eas.json: one line in each list for every place and checkpoint."""

    measure: Measure
    rows: list[Eas]
    alignments: list[Alignment]
    level: float
