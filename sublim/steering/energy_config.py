"""Settings and results of the directions that a student's change is set against when its own is replaced."""

from typing import Annotated

from pydantic import Field

from sublim.activations.config import Reading
from sublim.core.config import Config

OWN = "v_student"


def direction(vector: str) -> str:
    """The direction that a vector's name ends with: `resid_post/14/mean_answer/v_control` is v_control, and without an
    end it is the student's own."""
    return "/".join(vector.split("/")[3:]) or OWN


class EnergyConfig(Reading):
    """The texts on which a student's change is read, and how many of its principal components are taken."""

    questions: Annotated[tuple[str, ...], Field(min_length=1)]
    """The evaluation's questions: the replacement acts on their tokens, so the change is read there."""
    word: str
    """The target, which answers every question."""
    system: str | None = None
    """System prompt of the questions; null for the chat template's default."""
    weights_update: int | None = None
    """Checkpoint of the student's weights, as the number of updates; null for the last one."""
    components: Annotated[int, Field(ge=1)] = 3
    """Number of principal components that are directions of their own."""
    most: Annotated[int, Field(ge=1)] = 16
    """Most principal components that are taken together to hold as much of the change as v_student."""


class Energy(Config):
    """One direction, or several orthogonal ones together, and how much of the student's change it holds."""

    layer: int
    direction: str
    """v_student; v_control; teacher-wolf; component-0, …; components, which are the first few together; random-0, …"""
    vectors: list[str]
    """Names in the file of vectors."""
    share: float
    """The squared length of the change along the direction, summed over tokens, as a share of that of the whole
    change."""
    cosine: float
    """Absolute cosine with v_student; 0 for components, which are orthogonal to it."""


class Energies(Config):
    """The content of energies.json."""

    rows: list[Energy]
    tokens: int
    """Number of tokens at which the change was read."""
