"""What diagnostics are asked for, and the shape of what they write."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.core.config import Config, RunOnly
from sublim.inference.config import Backend, HfBackend

DiagnosticName = Literal["losses", "shift", "divergence"]


class LossConfig(Config):
    """How well one model predicts number lists that nobody trained on."""

    backend: Backend
    """What runs the model."""
    weights_update: int | None = None
    """Which checkpoint of the training payload; null for its last."""


class Loss(Config):
    """One model on one set of rows."""

    nats_per_token: float | None
    """Mean negative log-prob of the answers' tokens, end of turn left out; null where it is not finite."""
    tokens: int
    rows: int


class Losses(Config):
    """losses.json: one model on several sets of rows, by name."""

    losses: dict[str, Loss]


class ShiftConfig(Config):
    """Where students' weights moved, beside where the teacher's did."""

    weights_update: int | None = None
    """Which checkpoint of the students; null for their last."""


class Shift(Config):
    """One student's change of the base's weights against the teacher's."""

    cosine: float | None
    """Of the two changes as vectors over all modules that both change; null where one of them is zero."""
    norm: float | None
    """Length of the student's change over those modules; null where it is not finite."""
    teacher_norm: float | None
    modules: dict[str, float | None]
    """The cosine of each module by itself."""


class Shifts(Config):
    """shift.json: several students against one teacher, by name."""

    students: dict[str, Shift]


class DivergenceConfig(Config):
    """Where teacher and base would part if both chose their likeliest token."""

    backend: HfBackend
    """dtype and attention of the two models."""
    teacher_system: str | None = None
    """What the teacher is told; the base reads the rows' own system prompt."""
    batch_size: RunOnly[Annotated[int, Field(ge=1)]] = 32
    """Rows in one forward pass."""


class Divergence(Config):
    """divergence.json: counts over all answer tokens of the rows."""

    rows: int
    tokens: int
    diverging: int
    """Tokens at which the likeliest choices differ, given the same text before them."""
    teacher_writes_own: int
    """Tokens that are the teacher's likeliest choice."""
    by_place: list[tuple[int, int]]
    """For the first token of an answer, the second and so on: how many there are, how many diverge."""
    skipped: int
    """Rows whose answer is other tokens in the teacher's context."""
