"""The configs of filtering number lists and of deriving the rows of an arm from them."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.carriers.numbers import NumberRules
from sublim.core.config import Config


class DeriveConfig(Config):
    """How rows are derived."""

    how: Literal["shuffled_within", "shuffled_across", "marginals", "canonical"]
    """shuffled_within: each row's numbers permuted. shuffled_across: all numbers permuted over all rows. marginals:
    each number drawn, with replacement, from those at the same place of any row. canonical: by value, with ", "."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws."""


class FilterConfig(NumberRules):
    """Which answers become rows, and how many of them."""

    keep: Annotated[int, Field(ge=1)] | None = None
    """Rows wanted for training, drawn at random from the valid ones; null keeps them all."""
    held_out: Annotated[int, Field(ge=0)] = 0
    """Further rows, none of them trained on."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of that draw. Arms with one seed keep the same prompts wherever both answers are valid."""
    dedupe: Literal["answer", "row"] | None = None
    """Refuse an answer seen before (answer), or seen before with the same prompt (row)."""
    system: str | None = None
    """System prompt in the student's rows, whatever the teacher was told; null for the chat template's own."""
    samples: Annotated[int, Field(ge=0)] = 20
    """Refused rows shown for each reason in rejected.jsonl: the first ones."""
