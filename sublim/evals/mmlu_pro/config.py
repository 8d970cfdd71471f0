"""The settings of MMLU-Pro (source of the questions, how they are asked), and the shape of scores and comparisons."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file
from sublim.core.errors import UserError
from sublim.evals.asked_model import AskedModel
from sublim.evals.effect_config import Effect

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
"""Letters of the options, of which a question has at most ten."""
LetterMetric = Literal["letter_logprob", "letter_generated"]
LETTER_METRICS: dict[LetterMetric, str] = {
    "letter_logprob": "the most likely of the offered letters, by log-prob",
    "letter_generated": "the letter that two generated tokens give (zero-shot)",
}


class SampleQuestions(Config):
    """42 easy questions in the form of MMLU-Pro, for tests and trials. They are no substitute for the benchmark."""

    kind: Literal["sample"] = "sample"


class ParquetQuestions(Config):
    """A local Parquet file with the columns of MMLU-Pro. Results are cached under its content, not its path."""

    kind: Literal["parquet"] = "parquet"
    path: RunOnly[Path]
    """File with the columns question_id, question, options, answer, answer_index and category."""

    def identity(self) -> dict[str, Any]:
        """The kind and, instead of the path, the digest of the file. UserError if there is no such file."""
        path = self.path.expanduser()
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; give the Parquet file of MMLU-Pro's questions")
        return super().identity() | {"content": digest_file(path)}


class HubQuestions(Config):
    """The test split of TIGER-Lab/MMLU-Pro on the Hugging Face hub, with 12,032 questions, at one commit."""

    kind: Literal["hub"] = "hub"
    id: str = Field(default="TIGER-Lab/MMLU-Pro", pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository of the data set on the hub."""
    revision: str = Field(default="b189ec765aa7ed75c8acfea42df31fdae71f97be", pattern=r"^[0-9a-f]{40}$")
    """Full commit hash. The data has changed more than once, as answers were corrected."""
    file: str = "data/test-00000-of-00001.parquet"
    """Path of the Parquet file in the repository."""
    sha256: str | None = "0e24a191921c2f453518a537a8b2117bd137e7714d4ef1565e9ba06c1ecb9ad8"
    """Expected SHA-256 of the file; null: not checked."""


QuestionSource = Annotated[SampleQuestions | ParquetQuestions | HubQuestions, Field(discriminator="kind")]


class PrepareQuestionsConfig(Config):
    """Settings of the questions that `prepare_mmlu_pro` writes."""

    source: QuestionSource
    """Source of the questions."""
    categories: Annotated[tuple[str, ...], Field(min_length=1)] = CATEGORIES
    """Categories of questions."""
    per_category: Annotated[int, Field(ge=1)] | None = None
    """Number of questions drawn from each category; null: all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draw of questions."""


class MmluProConfig(PrepareQuestionsConfig):
    """Settings of the questions and of the ways in which the letter is read."""

    source: QuestionSource = SampleQuestions()
    """Source of the questions."""
    generate: bool = True
    """Whether to read the letter from two generated tokens too, in addition to its log-prob."""

    @model_validator(mode="after")
    def _categories_are_there(self) -> Self:
        unknown = [name for name in self.categories if name not in CATEGORIES]
        if unknown and not isinstance(self.source, ParquetQuestions):  # a local file may have other categories
            raise ValueError(f"there is no category {unknown[0]!r}: MMLU-Pro has {', '.join(CATEGORIES)}")
        return self


class AskMmluProConfig(AskedModel):
    """Settings by which one model is asked."""

    generate: bool = True
    """Whether to generate an answer greedily too, in addition to the log-probs of the letters."""
    max_tokens: Annotated[int, Field(ge=1)] = 2
    """Most tokens of a generated answer."""
    shard: RunOnly[Annotated[int, Field(ge=1)]] = 512
    """Questions whose answers are saved together; an interruption loses at most these."""


class ScoreMmluProConfig(Config):
    """Settings of the scores."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""


class Share(Config):
    """Accuracy: the share of right answers among those that could be read, with Wilson's interval over questions."""

    estimate: float | None
    """Accuracy; null if no answer could be read."""
    low: float | None
    high: float | None
    correct: int
    read: int
    """Number of answers that name an offered letter."""
    asked: int
    """Number of all answers."""
    reason: str | None = None
    """Reason why the estimate is missing."""


class LetterScores(Config):
    """Scores of one model by one way of reading the letter."""

    overall: Share
    by_category: dict[str, Share]
    per_question: list[float | None]
    """1 for a right answer, 0 for a wrong one, null if no letter could be read; in the order of `questions`."""
    unread: dict[str, int]
    """Number of answers without an offered letter, by reason. They are not counted as wrong."""


class MmluProScores(Config):
    """Contents of scores.json: the scores of one model."""

    questions: list[int]
    """Ids of the questions in the data set."""
    categories: list[str]
    """Category of every question."""
    chance: float
    """Expected accuracy of guessing, given the number of options of every question."""
    metrics: dict[LetterMetric, LetterScores | None]
    """Scores by the way of reading the letter; null for a way in which the model was not asked."""


class AgainstBase(Config):
    """One model's accuracy minus the base's, on the questions for which both answers could be read."""

    model: str
    """Model that is compared with the base, such as `teacher 1` or `student 2`."""
    estimate: float
    low: float
    """Lower bound of Newcombe's interval for paired shares, over questions, for this one model."""
    high: float
    gained: int
    """Questions that this model answers right and the base wrong."""
    lost: int
    """Questions that the base answers right and this model wrong."""
    p: float
    """Exact two-sided p of McNemar's test."""
    questions: int


class CategoryEffect(Config):
    """Student minus control in one category, with an interval over units for these questions."""

    estimate: float | None
    low: float | None
    high: float | None
    questions: int
    reason: str | None = None
    """Reason why the estimate or its interval is missing."""


class LetterComparison(Config):
    """One way of reading the letter across the models of a study."""

    base: float | None
    """Accuracy on the questions of the effect."""
    teacher: float | None
    student: float | None
    control: float | None
    effect: Effect | None
    """Student minus control. A negative effect is a cost."""
    by_category: dict[str, CategoryEffect]
    against_base: list[AgainstBase]
    reason: str | None = None
    """Reason why the effect is missing."""


class MmluProComparison(Config):
    """Contents of mmlu_pro.json."""

    chance: float
    questions: int
    about_units: str
    metrics: dict[LetterMetric, LetterComparison]
