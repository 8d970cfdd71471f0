"""The settings of the diagnostics, and the shape of the files they write."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.core.config import Config, RunOnly
from sublim.inference.config import Backend, HfBackend

DiagnosticName = Literal["losses", "shift", "divergence"]


class UnseenLossConfig(Config):
    """Settings of the loss on answers to unseen prompts: prompts from which no model was trained."""

    backend: Backend
    """Backend that runs the model."""
    weights_update: int | None = None
    """Update whose weights are read, if `weights` is the payload of a training run; null for the last one kept."""


class UnseenLoss(Config):
    """Loss of one model on one set of rows."""

    nats_per_token: float | None
    """Mean negative log-prob of the answers' tokens, without the end of turn; null if it is not finite."""
    tokens: int
    rows: int
    digit_nats: float | None
    """The same over those tokens alone that hold a digit, in nats per such token: separators say nothing of what was
    learned where they are forced. Null if there are none or the loss is not finite, or the backend counts other tokens
    than the base's tokenizer."""
    digit_tokens: int


class UnseenLosses(Config):
    """Contents of losses.json: the losses of one model, by the name of the set of rows."""

    losses: dict[str, UnseenLoss]


class ShiftConfig(Config):
    """Settings of the comparison between the students' changes of the weights and the teacher's."""

    weights_update: int | None = None
    """Update whose weights are read from the students' payloads; null for the last one kept."""


class Shift(Config):
    """One student's change of the base's weights compared with the teacher's."""

    cosine: float | None
    """Cosine of the two changes as vectors over all modules that both change; null if one of them is zero."""
    norm: float | None
    """Euclidean norm of the student's change over those modules; null if it is not finite."""
    teacher_norm: float | None
    """Euclidean norm of the teacher's change over those modules; null if it is not finite."""
    modules: dict[str, float | None]
    """Cosine of the two changes of each module alone."""


class Shifts(Config):
    """Contents of shift.json: several students compared with one teacher, by name."""

    students: dict[str, Shift]


class DivergenceConfig(Config):
    """Settings of the search for tokens at which teacher and base differ in their most likely choice."""

    backend: HfBackend
    """Number type and attention kernel of the two models."""
    teacher_system: str | None = None
    """System prompt of the teacher. The base reads each row's own system prompt, and so does the teacher if null."""
    batch_size: RunOnly[Annotated[int, Field(ge=1)]] = 32
    """Rows in one forward pass."""


class Divergence(Config):
    """Contents of divergence.json: counts over all answer tokens of the rows."""

    rows: int
    tokens: int
    diverging: int
    """Tokens at which the most likely choices of teacher and base differ, given the same preceding text."""
    teacher_writes_own: int
    """Tokens that are the teacher's most likely choice."""
    by_place: list[tuple[int, int]]
    """One pair for the first token of an answer, one for the second and so on: the number of answers that have such a
    token, and the number of those in which it diverges."""
    skipped: int
    """Rows left out because their answer has other tokens after the teacher's system prompt."""
