"""Settings of filtering number lists, of deriving an arm's rows from them, and of mixing rows."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.carriers.numbers import NumberRules
from sublim.core.config import Config


class DeriveConfig(Config):
    """How an arm's rows are derived from filtered rows."""

    how: Literal["shuffled_within", "shuffled_across", "marginals", "canonical"]
    """shuffled_within: the numbers of each row are permuted. shuffled_across: all numbers are permuted across rows.
    marginals: each number is drawn, with replacement, from the numbers at the same position in any row. canonical: the
    numbers are written by value, separated by ", "."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the permutations and draws."""


class MixConfig(Config):
    """How many rows of two sets are mixed, and in which share."""

    rows: Annotated[int, Field(ge=1)]
    """Number of rows of both sets together."""
    share: Annotated[float, Field(ge=0, le=1)]
    """Share of these that are rehearsal rows."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the order."""


class FilterConfig(NumberRules):
    """Which answers are accepted as rows, and how many rows are kept."""

    keep: Annotated[int, Field(ge=1)] | None = None
    """Number of rows for training, drawn at random from the valid ones; null keeps all."""
    held_out: Annotated[int, Field(ge=0)] = 0
    """Number of further rows that are held out from training."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of that draw. Arms with the same seed keep the same prompts if both their answers are valid."""
    dedupe: Literal["answer", "row"] | None = None
    """answer: refuse an answer that occurred before. row: refuse it only if it occurred with the same prompt."""
    system: str | None = None
    """System prompt in the student's rows, independent of the teacher's; null for the chat template's default."""
    samples: Annotated[int, Field(ge=0)] = 20
    """How many refused rows rejected.jsonl shows for each reason."""
