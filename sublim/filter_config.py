"""Which raw answers become rows of a dataset, and how many."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.numbers import NumberRules


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
