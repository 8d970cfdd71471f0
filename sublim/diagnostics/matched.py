"""Loss-matched comparison: students and controls not after as many updates, but after learning as much.

Two carriers are not equally hard, so equal updates need not mean equal learning. What is matched is the gain: by how
many nats per token a model predicts unseen rows of its own carrier better than the base does.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Along(NamedTuple):
    """A model at one point of its training."""

    gain: float
    """The base's held-out loss minus this model's, on rows like its own."""
    margin: float


class Matched(NamedTuple):
    """A pair at equal gains."""

    gain: float
    student: float
    control: float

    @property
    def effect(self) -> float:
        return self.student - self.control


def matched_pair(student: Sequence[Along], control: Sequence[Along]) -> Matched | None:
    """Both margins at the largest gain that both reach, read off the straight lines between checkpoints.

    Both paths start at the base (gain 0). None where one of them never gains anything.
    """
    gain = min(max(point.gain for point in student), max(point.gain for point in control))
    if gain <= 0:
        return None
    return Matched(gain, margin_at(student, gain), margin_at(control, gain))


def margin_at(path: Sequence[Along], gain: float) -> float:
    """The margin where the path first reaches `gain`."""
    for before, after in pairwise(path):
        if before.gain < gain <= after.gain:
            share = (gain - before.gain) / (after.gain - before.gain)
            return before.margin + share * (after.margin - before.margin)
    raise ValueError(f"the path never reaches a gain of {gain}")
