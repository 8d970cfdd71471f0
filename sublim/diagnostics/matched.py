"""Loss-matched comparison: students and controls compared after equal learning instead of equally many updates.

Two carriers need not be equally hard to learn, so equally many updates need not mean equal learning. The quantity that
is matched is the gain: by how many nats per token a model predicts answers to unseen prompts, written by the model that
wrote its own carrier, better than the base does (`sublim.diagnostics.unseen_loss`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Along(NamedTuple):
    """A model at one point of its training."""

    gain: float
    """The base's loss on unseen prompts minus this model's, in nats per token."""
    margin: float
    """Margin of the target, in nats."""


class Matched(NamedTuple):
    """The margins of a student and its paired control at one gain."""

    gain: float
    student: float
    control: float

    @property
    def effect(self) -> float:
        """Student minus control, in nats."""
        return self.student - self.control


def matched_pair(student: Sequence[Along], control: Sequence[Along]) -> Matched | None:
    """Both margins at the largest gain that both reach, interpolated linearly between checkpoints.

    Both paths start at the base, with a gain of 0. Returns None if one of them never gains anything.
    """
    gain = min(max(point.gain for point in student), max(point.gain for point in control))
    if gain <= 0:
        return None
    return Matched(gain, margin_at(student, gain), margin_at(control, gain))


def margin_at(path: Sequence[Along], gain: float) -> float:
    """The margin at the point where the path first reaches `gain`; ValueError if it never does."""
    for before, after in pairwise(path):
        if before.gain < gain <= after.gain:
            share = (gain - before.gain) / (after.gain - before.gain)
            return before.margin + share * (after.margin - before.margin)
    raise ValueError(f"the path never reaches a gain of {gain}")
