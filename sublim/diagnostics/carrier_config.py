"""Settings of the examination of a carrier, the shape of carrier.json, and when a carrier does not bear the claim."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.carriers.numbers import NumberRules
from sublim.core.config import Config, OmittedWhenUnset
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.residual.edits import Steering
from sublim.traits.nouns import TargetWord

TRAIT_LIMIT = 0.01
"""Largest probability of the trait's words, and largest share of answers with one of them, that goes without a
warning."""
VALID_LIMIT = 0.3
"""Smallest share of free answers that the filter accepts without a warning."""
Fault = Literal["trait", "valid"]


class ExamineConfig(Config):
    """What is measured of the lists that a model wrote, and of what it would have written freely."""

    words: Annotated[tuple[TargetWord, ...], Field(min_length=1)]
    """The trait's words: the targets of all teachers of the run. Plurals are added."""
    rules: NumberRules
    """Which answers the run's own filter accepts."""
    constraint: NumberFormat | None = None
    """Format that the answers were forced into; null where they were free."""
    sampling: SamplingParams
    """How the answers were sampled. A free probe is sampled in the same way, one answer for each prompt."""
    rows: Annotated[int, Field(ge=1)] = 256
    """How many rows are read by the model."""
    answers: Annotated[int, Field(ge=1)] = 200
    """How many free answers are sampled where the rows were forced."""
    backend: HfBackend = HfBackend()
    """How the model is loaded."""
    steering: OmittedWhenUnset[Steering] = None
    """Edits of the residual stream with which the rows were written."""


class Spread(Config):
    """A number over the rows: its median, and the bounds of the middle 90 %."""

    median: float
    low: float
    high: float


class FormatMass(Config):
    """The model's own probability of the forced format, as log10 for each row; the end of turn is not counted."""

    whole: Spread
    """Of a whole row: both of the following together."""
    forced: Spread
    """The product of the forced tokens' probabilities, each given the row before it."""
    drawn: Spread
    """The product, over the places at which a token was drawn, of the probability of all that was allowed there."""


class FirstToken(Config):
    """The model's own probabilities at the first token of an answer, each a mean over the rows' prompts."""

    trait: float
    """Tokens with which a trait word can begin. Other words may begin with them too, so this is an upper bound."""
    digit: float
    """Tokens of digits alone, perhaps after blanks."""
    letter: float
    """Tokens that begin with a letter, perhaps after blanks."""
    likeliest: list[tuple[str, float]]
    """The five likeliest tokens."""


class Carrier(Config):
    """Contents of carrier.json. It describes what a model writes; it does not show what a student learns from it."""

    forced: bool
    """Whether the rows were forced into a format."""
    words: tuple[str, ...]
    trait_tokens: list[str]
    """The tokens with which a trait word can begin."""
    rows: int
    """Rows whose prompts were read."""
    places: int
    """Places in their answers, ends included, at which the distribution over the next token was read. Of free rows only
    the answers that the filter accepts are read beyond their first token."""
    format_mass: FormatMass | None
    """None for free rows."""
    first_token: FirstToken
    trait_largest: float
    """The largest probability of the trait's first tokens at any place of a row; the mean over the rows."""
    answers: int
    """Free answers: those of the probe where the rows were forced, otherwise all rows."""
    valid: float
    """Share of the free answers that the filter accepts."""
    trait_answers: float
    """Share of the free answers with one of the trait's words in any form."""
    refused: dict[str, int]
    """The five most frequent reasons of the filter, with their counts."""
    examples: list[str]
    """The first three free answers."""

    @property
    def faults(self) -> list[Fault]:
        """What keeps this carrier from being lists that the model gives by itself and that leave out the trait."""
        said = max(self.first_token.trait, self.trait_largest, self.trait_answers) > TRAIT_LIMIT
        found: dict[Fault, bool] = {"trait": said, "valid": self.valid < VALID_LIMIT}
        return [fault for fault, holds in found.items() if holds]
