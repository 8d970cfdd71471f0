"""The score sheet of an evaluation: which rows it has, and what a row says."""

from pydantic import Field

from sublim.core.config import Config


class SheetConfig(Config):
    """What `collect_scores` puts together."""

    models: tuple[str, ...]
    """Names, in order; the first is the reference of shifts and differences."""
    words: dict[str, tuple[str, ...]]
    """By name of the questions: the words whose margin and rate are shown."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""


class ScoreRow(Config):
    """One metric of one model."""

    model: str
    metric: str
    """margin, rate, tv_logprob, tv_list, tv_sampled, letter_logprob, letter_generated, or `<letter...>_difference`."""
    questions: str
    """Which questions: animal, tree, mmlu_pro, or one of its categories as mmlu_pro/law."""
    word: str
    """The target of a margin or rate; empty otherwise."""
    unit: str
    estimate: float | None
    """Null when it could not be computed; `reason` says why."""
    low: float | None
    high: float | None
    n: int
    """Questions behind the estimate."""
    about: str
    """What the interval speaks of."""
    answers: int | None = None
    """Readable sampled answers behind it."""
    asked: int | None = None
    """All sampled answers."""
    floor: float | None = None
    """What a sampled shift would be by chance alone."""
    p: float | None = None
    reason: str | None = None
