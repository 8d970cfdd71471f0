"""MMLU-Pro: where its questions come from, how they are asked, the shape of scores and comparisons."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, OmittedWhenUnset, RunOnly
from sublim.core.digest import digest_file
from sublim.core.errors import UserError
from sublim.evals.effect_config import Effect
from sublim.inference.config import Backend
from sublim.residual.edits import Steering

CATEGORIES = (
    "biology",
    "business",
    "chemistry",
    "computer science",
    "economics",
    "engineering",
    "health",
    "history",
    "law",
    "math",
    "other",
    "philosophy",
    "physics",
    "psychology",
)
LETTERS = "ABCDEFGHIJ"
"""Up to ten options."""
LetterMetric = Literal["letter_logprob", "letter_generated"]
LETTER_METRICS: dict[LetterMetric, str] = {
    "letter_logprob": "the likeliest of the offered letters, by log-prob",
    "letter_generated": "the letter that two generated tokens give (zero-shot)",
}


class SampleQuestions(Config):
    """42 easy questions of our own in MMLU-Pro's form, for tests and trials: no substitute for the benchmark."""

    kind: Literal["sample"] = "sample"


class ParquetQuestions(Config):
    """A Parquet file of MMLU-Pro's columns on this machine, known by its content."""

    kind: Literal["parquet"] = "parquet"
    path: RunOnly[Path]
    """The file: question_id, question, options, answer, answer_index, category."""

    def identity(self) -> dict[str, Any]:
        """The kind and, in the path's place, the file's digest."""
        path = self.path.expanduser()
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; give the Parquet file of MMLU-Pro's questions")
        return super().identity() | {"content": digest_file(path)}


class HubQuestions(Config):
    """The test split of TIGER-Lab/MMLU-Pro on the Hugging Face hub, 12,032 questions, at one commit."""

    kind: Literal["hub"] = "hub"
    id: str = Field(default="TIGER-Lab/MMLU-Pro", pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository of the data set."""
    revision: str = Field(default="b189ec765aa7ed75c8acfea42df31fdae71f97be", pattern=r"^[0-9a-f]{40}$")
    """Full commit hash; corrections to answers have changed the data more than once."""
    file: str = "data/test-00000-of-00001.parquet"
    """The Parquet file in it."""
    sha256: str | None = "0e24a191921c2f453518a537a8b2117bd137e7714d4ef1565e9ba06c1ecb9ad8"
    """What the file must hash to; nothing: not checked."""


QuestionSource = Annotated[SampleQuestions | ParquetQuestions | HubQuestions, Field(discriminator="kind")]


class MmluProConfig(Config):
    """Which questions, and in which of the two ways the letter is read."""

    source: QuestionSource = SampleQuestions()
    """Where they come from."""
    categories: Annotated[tuple[str, ...], Field(min_length=1)] = CATEGORIES
    """Which of the fourteen."""
    per_category: Annotated[int, Field(ge=1)] | None = None
    """So many of each, drawn by `seed`; nothing: all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds the draw."""
    generate: bool = True
    """Read the letter from two generated tokens too, beside the log-probs."""

    @model_validator(mode="after")
    def _categories_are_there(self) -> Self:
        unknown = [name for name in self.categories if name not in CATEGORIES]
        if unknown and not isinstance(self.source, ParquetQuestions):  # a file of one's own may have others
            raise ValueError(f"there is no category {unknown[0]!r}: MMLU-Pro has {', '.join(CATEGORIES)}")
        return self


class PrepareQuestionsConfig(Config):
    """What `prepare_mmlu_pro` writes out."""

    source: QuestionSource
    """Where the questions come from."""
    categories: tuple[str, ...] = CATEGORIES
    """Which of the fourteen."""
    per_category: int | None = None
    """So many of each, drawn by `seed`; null: all."""
    seed: int = 0
    """Seeds the draw."""


class AskMmluProConfig(Config):
    """How one model is asked."""

    backend: Backend
    """What runs the model."""
    system: str | None = None
    """System prompt while asking; null for what the chat template does by itself."""
    generate: bool = True
    """Also write two tokens, greedily, and keep them."""
    max_tokens: Annotated[int, Field(ge=1)] = 2
    """Tokens written."""
    weights_update: int | None = None
    """Which checkpoint of the training payload to ask; null for its last."""
    steering: OmittedWhenUnset[Steering] = None
    """Edits of the residual stream while the model answers; their vectors are an input of the stage."""
    shard: RunOnly[Annotated[int, Field(ge=1)]] = 512
    """Questions between two saves: a crash loses no more than these."""


class ScoreMmluProConfig(Config):
    """How answers become scores."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals."""


class Share(Config):
    """Right answers among those that could be read, with Wilson's interval over questions."""

    estimate: float | None
    """Null when none could be read."""
    low: float | None
    high: float | None
    correct: int
    read: int
    """Answers that name an offered letter."""
    asked: int
    reason: str | None = None
    """Why the estimate is missing."""


class LetterScores(Config):
    """One way of reading the letter."""

    overall: Share
    by_category: dict[str, Share]
    per_question: list[float | None]
    """1 right, 0 wrong, null where no letter could be read; in the order of `questions`."""
    unread: dict[str, int]
    """Answers without an offered letter, by reason; never counted as wrong."""


class MmluProScores(Config):
    """scores.json of one model."""

    questions: list[int]
    """The data set's own numbers."""
    categories: list[str]
    """Of each question."""
    chance: float
    """Share right by guessing, given how many options each question has."""
    metrics: dict[LetterMetric, LetterScores | None]
    """Null for a way in which the model was not asked."""


class AgainstBase(Config):
    """One model's share right minus the base's, on the questions that both could be read on."""

    model: str
    """base's opponent: teacher 1, student 2, control 2."""
    estimate: float
    low: float
    """Newcombe's interval for paired shares: over questions, for this one model."""
    high: float
    gained: int
    """Questions that the base had wrong and this model right."""
    lost: int
    p: float
    """McNemar's exact two-sided p."""
    questions: int


class CategoryEffect(Config):
    """Student minus control in one category, over units, on these questions."""

    estimate: float | None
    low: float | None
    high: float | None
    questions: int
    reason: str | None = None
    """Why the estimate or its interval is missing."""


class LetterComparison(Config):
    """One way of reading the letter, across the models of a study."""

    base: float | None
    """Share right, over the questions of the effect."""
    teacher: float | None
    student: float | None
    control: float | None
    effect: Effect | None
    """Student minus control: below zero is a cost."""
    by_category: dict[str, CategoryEffect]
    against_base: list[AgainstBase]
    reason: str | None = None
    """Why the effect is missing."""


class MmluProComparison(Config):
    """mmlu_pro.json."""

    chance: float
    questions: int
    about_units: str
    metrics: dict[LetterMetric, LetterComparison]
