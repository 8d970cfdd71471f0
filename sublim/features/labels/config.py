"""The configs of feature labels: taken from Neuronpedia, or written by a model."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file
from sublim.core.errors import UserError
from sublim.inference.config import Backend, HfBackend, OpenAIBackend, renders

Category = Literal["animals", "numbers", "opinion", "none"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
FeatureId = Annotated[str, Field(pattern=r"^\d{1,4}_\d{1,9}$")]


class Described(Config):
    """A feature named `<layer>_<feature>`, perhaps with a description of one's own and a category given by hand."""

    feature: FeatureId
    """Layer and number, as in 20_4711."""
    description: str | None = None
    """What it responds to; nothing: as its label says."""
    category: Category | None = None
    """Where it belongs by hand; given for enough features, the share of right answers is measured."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """`20_4711` and `20_4711: what it responds to` stand for the whole."""
        if isinstance(value, int):
            raise ValueError(
                f"without quotes an id is a number to YAML (20_4711 is 204711): put quotes around what became {value}"
            )
        if not isinstance(value, str):
            return value
        name, _, text = value.partition(":")
        return {"feature": name.strip(), "description": text.strip() or None}

    @property
    def layer(self) -> int:
        return int(self.feature.partition("_")[0])

    @property
    def number(self) -> int:
        return int(self.feature.partition("_")[2])


class FeatureList(Config):
    """A file of features."""

    features: tuple[Described, ...]
    """The features, as ids or with their descriptions."""


class AnnotateConfig(Config):
    """Which descriptions to sort, and by whom."""

    features: tuple[Described, ...] = ()
    """The features, those without a description as the labels describe them."""
    only: tuple[FeatureId, ...] = ()
    """Further features by their ids alone. No features and none of these: every one that the labels describe."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The layer that the labels belong to, where they do not say."""
    backend: Backend = HfBackend()
    """What reads the descriptions."""
    by: Literal["auto", "generation", "log-probs"] = "auto"
    """generation: the model writes a category. log-probs: the likeliest of the four words, for small models better.
    auto: generation with a server, log-probs otherwise."""
    calibrate: bool = True
    """With log-probs: each word's score is relative to its mean over eight descriptions, two of each category."""
    max_tokens: Annotated[int, Field(ge=1)] = 8
    """Longest answer."""
    seed: int = 0
    """Sent along, for servers that draw even at temperature 0."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of intervals."""
    shard: RunOnly[Annotated[int, Field(ge=1)]] = 32
    """Descriptions that a local model reads before what it said is kept; a server's answers are kept one by one."""

    @model_validator(mode="after")
    def _scorable(self) -> Self:
        if self.by == "log-probs" and isinstance(self.backend, OpenAIBackend) and self.backend.api == "chat":
            raise ValueError("a chat server gives no log-probs of words: set by to generation")
        names = [each.feature for each in self.listed]
        if len({*names}) < len(names):
            raise ValueError(f"a feature is listed twice: {next(name for name in names if names.count(name) > 1)}")
        return self

    @property
    def listed(self) -> tuple[Described, ...]:
        """The features asked for."""
        return (*self.features, *(Described(feature=name) for name in self.only))

    @property
    def needs_base(self) -> bool:
        """Whether a local model, or its tokenizer, has to be given."""
        return renders(self.backend)

    def resolved(self) -> Self:
        config = super().resolved()
        if config.by != "auto":
            return config
        by = "generation" if isinstance(config.backend, OpenAIBackend) else "log-probs"
        return config.model_copy(update={"by": by})


class TakeLabelsConfig(Config):
    """A Parquet file of labels on this machine, known by its content."""

    path: RunOnly[Path]
    """The file: feature, description and perhaps layer, chosen."""

    def identity(self) -> dict[str, Any]:
        """The file's digest in the path's place."""
        path = self.path.expanduser()
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; give a Parquet file of labels")
        return super().identity() | {"content": digest_file(path)}


class Agreement(Config):
    """How many descriptions labelled by hand were sorted as the hand did."""

    right: int
    unreadable: int
    """Answers that name no category; they count as wrong."""
    n: int
    estimate: float
    low: float
    high: float
    confusion: dict[Category, dict[str, int]]
    """By hand, then by the model."""


class AnnotationSummary(Config):
    """What annotations.json says."""

    by: str
    counts: dict[str, int]
    """Descriptions in each category, and unreadable ones."""
    unlabelled: list[str]
    """Features asked for that no label describes; they are in no table."""
    agreement: Agreement | None
    """With the categories given by hand; null where none were."""
    missing: Annotated[dict[str, str], Field(default_factory=dict, exclude_if=lambda reasons: not reasons)]
    """Features that a server gave no answer for, each with the reason; they are in no count and have no category. Left
    out when there are none."""


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class LabelsConfig(Config):
    """The explanations of one SAE's features. What the bucket held is noted in the manifest; forget to import anew."""

    model: Name = "gemma-2-9b-it"
    """The model's name on Neuronpedia."""
    source: Name = "20-gemmascope-res-16k"
    """The SAE's name there: its layer, then its kind and width."""
    prefer: tuple[str, ...] = ()
    """Models whose explanations are chosen first, best first, where scores do not decide."""
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")] = "neuronpedia-datasets"
    """The public bucket."""
    root: Name = "v1"
    """The folder in the bucket under which models lie."""
    endpoint: RunOnly[Annotated[str, Field(pattern=r"^https?://[^@?#\s]+$")] | None] = None
    """Address of another S3 server that holds the same bucket; nothing: Amazon's."""
    region: RunOnly[str] = "us-east-1"
    """Where the bucket lies."""
    workers: RunOnly[Annotated[int, Field(ge=1, le=64)]] = 16
    """Files downloaded at a time."""
    attempts: RunOnly[Annotated[int, Field(ge=1)]] = 5
    """Tries of a file whose download breaks off; each goes on where the last one ended."""
    timeout: RunOnly[Annotated[float, Field(gt=0)]] = 60.0
    """Seconds to wait for the server."""
    largest_mib: RunOnly[Annotated[int, Field(ge=1)]] = 4096
    """Most that one file may unpack to; more is refused."""

    @property
    def prefix(self) -> str:
        """Where the explanations lie in the bucket."""
        return f"{self.root}/{self.model}/{self.source}/explanations/"
