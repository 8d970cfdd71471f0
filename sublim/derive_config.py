"""How rows are derived from filtered ones."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.config import Config


class DeriveConfig(Config):
    """How rows are derived."""

    how: Literal["shuffled_within", "shuffled_across", "marginals", "canonical"]
    """shuffled_within: each row's numbers permuted. shuffled_across: all numbers permuted over all rows. marginals:
    each number drawn, with replacement, from those at the same place of any row. canonical: by value, with ", "."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws."""
