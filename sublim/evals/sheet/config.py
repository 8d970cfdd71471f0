"""The settings of the score sheet of an evaluation, and the shape of its rows."""

from pydantic import Field

from sublim.core.config import Config


class SheetConfig(Config):
    """Settings of the table that `collect_scores` makes."""

    models: tuple[str, ...]
    """Names of the models in order. The first is the reference for shifts and differences."""
    words: dict[str, tuple[str, ...]]
    """Words whose margin and rate are shown, by the name of the questions."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of the intervals."""


class ScoreRow(Config):
    """One row of the sheet: one metric of one model."""

    model: str
    metric: str
    """margin, rate, rate_readable, unreadable (a model's share, whatever the word),
    tv_logprob, tv_list, tv_sampled, letter_logprob, letter_generated, or `<letter...>_difference`."""
    questions: str
    """Name of the questions: animal, tree, mmlu_pro, or a category such as mmlu_pro/law."""
    word: str = ""
    """Word whose margin or rate it is; empty for other metrics."""
    unit: str
    estimate: float | None
    """Value of the metric; null if it could not be computed, for the reason in `reason`."""
    low: float | None
    high: float | None
    n: int
    """Number of questions in the estimate."""
    about: str
    """Statement of what the interval covers."""
    answers: int | None = None
    """Number of readable sampled answers."""
    asked: int | None = None
    """Number of all sampled answers."""
    floor: float | None = None
    """Mean of a sampled shift under equal distributions, by chance alone."""
    p: float | None = None
    reason: str | None = None
