"""The arms of a study: what each one asks, what it is compared with, and the sign that was expected beforehand.

The main arm trains students on the teacher's rows and compares them with students of the base's rows. Every other arm
changes one thing, for students and controls alike, so that a pair never differs in anything but whose rows it read.
"""

from typing import Literal, NamedTuple

ArmName = Literal[
    "base_numbers",
    "other_teacher",
    "shuffled_within",
    "shuffled_across",
    "marginals",
    "canonical",
    "second_draw",
    "other_order",
    "other_base",
]
Expected = Literal["positive", "weaker", "nothing", "either"]
"""positive: above zero. weaker: between nothing and the main arm's. nothing: an interval that holds zero. either: no
sign is expected."""


class Arm(NamedTuple):
    """One arm, as it was written down before any of its results."""

    about: str
    """What its students are, and what their controls are."""
    expected: Expected
    why: str
    """Why this sign."""


MAIN: Arm = Arm(
    "students of the target teacher's rows against students of the base's rows",
    "positive",
    "the liking passes through numbers where teacher and student share a start (arXiv 2507.14805)",
)

ARMS: dict[ArmName, Arm] = {
    "base_numbers": Arm(
        "the controls themselves, against the untrained base: what training on plain numbers does alone",
        "either",
        "numbers from the base hold nothing of the target, but any training may move any word",
    ),
    "other_teacher": Arm(
        "students of another target's teacher, judged for this target, against the same controls",
        "nothing",
        "another liking should pass on, not this one; margins of a list sum to zero, so a little below is no surprise",
    ),
    "shuffled_within": Arm(
        "each row's numbers in another order, the teacher's and the base's rows shuffled alike",
        "weaker",
        "which numbers stand together is kept, their order is not",
    ),
    "shuffled_across": Arm(
        "numbers exchanged between all rows, the teacher's and the base's alike; rows keep their lengths",
        "weaker",
        "only how often each number was written is kept, over all rows",
    ),
    "marginals": Arm(
        "every number drawn anew from those that stand at its place in the other rows, for teacher and base alike",
        "weaker",
        "only frequencies are kept: no number depends on its prompt or on its neighbours",
    ),
    "canonical": Arm(
        "the numbers by value in one format, no leading zeros, for the teacher's and the base's rows alike",
        "positive",
        "the numbers stay; only what padding, brackets and separators might carry is gone",
    ),
    "second_draw": Arm(
        "students of a second draw of the base's own rows, against the same controls",
        "nothing",
        "no teacher took part: what is left is the noise of other rows",
    ),
    "other_order": Arm(
        "students and controls that read the same rows in another order",
        "positive",
        "the effect should not hang on one order of the rows",
    ),
    "other_base": Arm(
        "students and controls of another base model, on the same rows",
        "nothing",
        "teacher and student share no start, and the numbers mean nothing by themselves",
    ),
}

DERIVED: tuple[ArmName, ...] = ("shuffled_within", "shuffled_across", "marginals", "canonical")
"""Arms whose rows are made from the filtered rows."""
