"""The arms of a study, each with the expectation that was stated before any results.

The main arm trains students on the teacher's rows and compares them with controls, trained on the base's rows. Every
other arm changes one thing, for students and controls alike, so that a pair differs only in who wrote its rows.
"""

from typing import Final, Literal, NamedTuple

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
"""The expected effect. positive: above zero. weaker: between zero and the main arm's effect. nothing: its interval
contains zero. either: no sign is expected."""
NOTHING: Final = 0.25
"""Default bound of an arm that should show nothing: this share of the main arm's effect counts as nothing."""


class Arm(NamedTuple):
    """One arm and its expectation. Reports show the two sentences."""

    about: str
    """What its students and their controls are."""
    expected: Expected
    why: str
    """Why this is expected."""
    bound: float | None = None
    """Only where nothing is expected: an effect within this share of the main arm's, after equally many updates, counts
    as nothing. It is declared here, before any results, and a run cannot change it; a run may name a bound in nats
    instead, in its settings."""


MAIN: Arm = Arm(
    "students of the target teacher's rows against students of the base's rows",
    "positive",
    "preferences pass through numbers where teacher and student start from the same weights (arXiv 2507.14805)",
)

SOFT: Arm = Arm(
    "students that learn the target teacher's probabilities of digits in the base's own rows, against the base",
    "positive",
    "the same, where nothing but these probabilities can tell one teacher's students from another's",
)
"""The main arm with soft labels."""

ARMS: dict[ArmName, Arm] = {
    "base_numbers": Arm(
        "the controls against the untrained base, which shows what training on the base's numbers does alone",
        "either",
        "the base's numbers say nothing about the target, but any training may change any word's margin",
    ),
    "other_teacher": Arm(
        "students of another target's teacher, measured for this target, against the same controls",
        "nothing",
        "another preference should pass, which lowers this margin a little because the margins of a list sum to zero",
        NOTHING,
    ),
    "shuffled_within": Arm(
        "the numbers within each row in another order, for the teacher's and the base's rows alike",
        "weaker",
        "a row keeps its numbers but not their order",
    ),
    "shuffled_across": Arm(
        "numbers exchanged between all rows, which keep their lengths, for the teacher's and the base's rows alike",
        "weaker",
        "only the frequency of each number over all rows is kept",
    ),
    "marginals": Arm(
        "every number replaced by one drawn from the same position in other rows, for teacher and base alike",
        "weaker",
        "only frequencies by position are kept, and no number depends on its prompt or its neighbours",
    ),
    "canonical": Arm(
        "the same numbers in one format without leading zeros, for the teacher's and the base's rows alike",
        "positive",
        "the numbers stay, and only what zeros, brackets and separators might carry is lost",
    ),
    "second_draw": Arm(
        "students of a second draw of the base's own rows, against the same controls",
        "nothing",
        "no teacher took part, so only the noise of other rows remains",
        NOTHING,
    ),
    "other_order": Arm(
        "students and controls trained on the same rows in another order",
        "positive",
        "the effect should not depend on one order of the rows",
    ),
    "other_base": Arm(
        "students and controls of another base model, on the same rows",
        "nothing",
        "teacher and student start from different weights, and the numbers have no meaning by themselves",
        NOTHING,
    ),
}

DERIVED: Final = ("shuffled_within", "shuffled_across", "marginals", "canonical")
"""Arms whose rows are made from the filtered rows by a change of their numbers."""
