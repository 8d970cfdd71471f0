"""The settings of the comparison between the students of several teachers, and the shape of specificity.json."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config
from sublim.evals.effect_config import CompareConfig, Effect
from sublim.evals.preference.config import MetricName


class CompareTargetsConfig(Config):
    """Settings of the comparison of every target's students with those of the other targets' teachers."""

    targets: Annotated[tuple[str, ...], Field(min_length=2)]
    """The targets that have a teacher, at least two, in the order in which their students are given."""
    words: tuple[str, ...]
    """All listed words, the targets among them, in the order of the tables."""
    compare: CompareConfig = CompareConfig()
    """Blocks of the units, and the level, draws and seed of the intervals."""
    permutations: Annotated[int, Field(ge=99)] = 10_000
    """The most arrangements of teachers that are evaluated. If there are more, so many are drawn at random."""

    @model_validator(mode="after")
    def _targets_are_listed(self) -> Self:
        if len({*self.targets}) < len(self.targets) or not {*self.targets} <= {*self.words}:
            raise ValueError("`targets` must be distinct and all among `words`")
        return self


class PlaceboRank(Config):
    """Where the target stands among the listed words by how far each word moved, in either direction.

    If the target were a word like any other, each rank would be equally likely, so that rank 1 of 12 alone is a p of
    1/12. It cannot show more than that, and words that resemble the target move with it.
    """

    rank: int
    """1: no other word moved as far. Words that moved exactly as far count as having moved further."""
    of: int
    """Number of words that were ranked, the target among them."""


class TargetEffects(Config):
    """The effect on one target, in two parts: total = generic + specific."""

    total: Effect
    """Student minus control. It shows that training on the teacher's rows moved the word, but not that the teacher's
    preference did: rows of any fine-tuned teacher may."""
    generic: Effect
    """Mean over the students of the other teachers, minus the target's own controls, for this word: what teachers do
    whatever they prefer. With few other targets it depends on which ones they are."""
    specific: Effect
    """Student minus the mean over the students of the other teachers, for this word. Controls cancel. It shows what
    this teacher did beyond the others. With one teacher for each target it may still be an accident of that teacher."""
    rank_total: PlaceboRank
    """By student minus control, among all listed words."""
    rank_specific: PlaceboRank
    """By own students minus the students of the teachers that prefer neither the target nor the ranked word. With two
    targets the other target has no such teacher and is left out."""


class Permutation(Config):
    """Permutation test of γ: which teacher is which is permuted within each block.

    It holds exactly if a teacher's target has no influence on its students (Fisher's sharp null). It says that some
    target is passed on, not which.
    """

    p: float
    """Share of arrangements whose γ is at least the observed one, which counts as one of them."""
    sided: Literal["greater"] = "greater"
    """One-sided: only a preference for the own target counts as evidence."""
    smallest: float
    """The smallest p that this number of teachers and arrangements allows."""
    arrangements: int
    """Number of arrangements that were evaluated."""
    exact: bool
    """Whether these are all arrangements. Otherwise they were drawn, and p = (1 + hits) / (1 + draws)."""


class TargetTable(Config):
    """One metric of the students of every teacher."""

    targets: dict[str, TargetEffects]
    gamma: Effect
    """γ: the mean over targets of the specific effect. Its interval is over blocks; within one block it is over seeds
    and does not say what other teachers of the same targets would do."""
    permutation: Permutation
    moved: dict[str, dict[str, float]]
    """Students of each target (outer) minus control, by all listed words (inner), mean over units and questions."""
    table: dict[str, dict[str, float]]
    """The same for the words that are targets: the table of which γ is the diagonal minus the rest."""
    teachers: dict[str, dict[str, float | None]] = Field(default_factory=dict[str, dict[str, float | None]])
    """The metric itself of each target's teachers, by all listed words, mean over blocks: whether a teacher prefers its
    target at all. Empty if teachers were not given."""


class Specificity(Config):
    """Contents of specificity.json."""

    targets: tuple[str, ...]
    words: tuple[str, ...]
    unit: Literal["block", "seed"]
    about_units: str
    """What the units are and what an interval over them does not cover."""
    leads: Literal["these_questions", "questions_too"]
    """Interval to quote, as in a comparison with controls."""
    metrics: dict[MetricName, TargetTable]
    """The metrics that have a value for every model on at least one question."""
    missing: dict[MetricName, str] = Field(default_factory=dict[MetricName, str])
    """Why the others are missing."""
