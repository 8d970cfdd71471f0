"""Loss-matched comparison: students and controls compared after equal learning instead of equally many updates.

Two carriers need not be equally hard to learn, so equally many updates need not mean equal learning. The quantity that
is matched is the gain: by how many nats per digit token a model predicts number lists to unseen prompts better than the
base does (`sublim.diagnostics.unseen_loss`). On whose lists matters: on those of its own writer each arm looks as if it
had learned more. And any word that training moves can show an effect at equal gain, so it is computed for all of them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

FEWEST = 3
"""Checkpoints that a path needs: through fewer, a curve would be a straight line that nobody measured."""


class Along(NamedTuple):
    """A model at one checkpoint of its training."""

    gain: float
    """The base's loss on unseen prompts minus this model's, in nats per digit token."""
    margin: float
    """Margin of a word, in nats."""


class Matched(NamedTuple):
    """The margins of a student and its paired control at one gain."""

    gain: float
    student: float
    control: float

    @property
    def effect(self) -> float:
        """Student minus control, in nats."""
        return self.student - self.control


def matched_pair(student: Sequence[Along], control: Sequence[Along]) -> Matched | str:
    """Both margins at the largest gain that both reach, interpolated linearly between checkpoints; or why there are
    none.

    Paths hold checkpoints in the order of training, without the base. There is no value before the first checkpoint:
    a gain that one of them has passed by then was not measured.
    """
    fewest = min(len(student), len(control))
    if fewest < FEWEST:
        return f"{fewest} measured checkpoints of {FEWEST} or more that are needed (evaluation.updates)"
    gain = min(max(point.gain for point in student), max(point.gain for point in control))
    if gain <= 0:
        return "a student or control learned nothing"
    margins = margin_at(student, gain), margin_at(control, gain)
    if margins[0] is None or margins[1] is None:
        return "one had gained more by its first checkpoint than the other ever did: evaluate earlier checkpoints"
    return Matched(gain, margins[0], margins[1])


def margin_at(path: Sequence[Along], gain: float) -> float | None:
    """The margin at the point where the path first reaches `gain`; None where its first checkpoint is past it or it
    never gets there."""
    if path[0].gain == gain:
        return path[0].margin
    if path[0].gain > gain:
        return None
    for before, after in pairwise(path):
        if before.gain < gain <= after.gain:
            share = (gain - before.gain) / (after.gain - before.gain)
            return before.margin + share * (after.margin - before.margin)
    return None
