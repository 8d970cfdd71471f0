"""Configs of feature labels: importing them, and sorting them into categories with a model."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file
from sublim.files.user_files import check_file
from sublim.inference.config import Backend, HfBackend, OpenAIBackend, renders

Category = Literal["animals", "numbers", "opinion", "none"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
FeatureId = Annotated[str, Field(pattern=r"^\d{1,4}_\d{1,9}$")]


class Described(Config):
    """A feature named `<layer>_<feature>`, optionally with your own description and a category assigned by hand."""

    feature: FeatureId
    """Layer and feature number, such as 20_4711."""
    description: str | None = None
    """What the feature responds to; null to use its label."""
    category: Category | None = None
    """Category assigned by hand. Features that have one are used to measure the share of right answers."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Accepts the short forms `20_4711` and `20_4711: what it responds to`."""
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
        """The layer in the id."""
        return int(self.feature.partition("_")[0])

    @property
    def number(self) -> int:
        """The feature number in the id."""
        return int(self.feature.partition("_")[2])


class FeatureList(Config):
    """A file that lists features."""

    features: tuple[Described, ...]
    """Feature ids, with or without descriptions."""


class AnnotateConfig(Config):
    """Which feature descriptions are sorted into categories, and by which model."""

    features: tuple[Described, ...] = ()
    """The features to sort; those without a description are described by their labels."""
    only: tuple[FeatureId, ...] = ()
    """Further features, by their ids alone. If `features` is empty too, all features that the labels describe."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Layer of the labels, if they do not contain it."""
    backend: Backend = HfBackend()
    """Backend that runs the model."""
    by: Literal["auto", "generation", "log-probs"] = "auto"
    """generation: the model writes the category. log-probs: the category word with the highest log-prob, better for
    small models. auto: generation with a server, log-probs otherwise."""
    calibrate: bool = True
    """With log-probs: subtract from the score of a word its mean over eight descriptions, two of each category."""
    max_tokens: Annotated[int, Field(ge=1)] = 8
    """Maximum number of tokens in an answer."""
    seed: int = 0
    """Seed sent to the server; some servers sample even at temperature 0."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    shard: RunOnly[Annotated[int, Field(ge=1)]] = 32
    """Descriptions that a local model sorts between two saves. A server's answers are saved one by one."""

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
        """All features that are listed, in `features` and `only`."""
        return (*self.features, *(Described(feature=name) for name in self.only))

    @property
    def needs_base(self) -> bool:
        """Whether the stage needs a local model or its tokenizer."""
        return renders(self.backend)

    def resolved(self) -> Self:
        """The config with `by` chosen for the backend."""
        config = super().resolved()
        if config.by != "auto":
            return config
        by = "generation" if isinstance(config.backend, OpenAIBackend) else "log-probs"
        return config.model_copy(update={"by": by})


class TakeLabelsConfig(Config):
    """A Parquet file of labels on this machine, identified by its content."""

    path: RunOnly[Path]
    """Path of the file, with the columns feature and description, and optionally layer and chosen."""

    def identity(self) -> dict[str, Any]:
        """The identity fields, with the digest of the file in place of its path."""
        path = self.path.expanduser()
        check_file(path, "Parquet file of labels")
        return super().identity() | {"content": digest_file(path)}


class Agreement(Config):
    """How many descriptions with a category assigned by hand were sorted into that category."""

    right: int
    unreadable: int
    """Number of answers that name no category; they count as wrong."""
    n: int
    estimate: float
    low: float
    high: float
    confusion: dict[Category, dict[str, int]]
    """Counts by category assigned by hand, then by category from the model."""


class AnnotationSummary(Config):
    """The content of annotations.json."""

    by: str
    counts: dict[str, int]
    """Number of descriptions in each category, and of unreadable answers."""
    unlabelled: list[str]
    """Listed features that no label describes; they are not in the table."""
    agreement: Agreement | None
    """Agreement with the categories assigned by hand; null if there are none."""
    missing: Annotated[dict[str, str], Field(default_factory=dict, exclude_if=lambda reasons: not reasons)]
    """Features for which a server gave no answer, each with the reason. They are not counted and have no category. The
    field is left out if there are none."""


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class LabelsConfig(Config):
    """The explanations of one SAE's features on Neuronpedia.

    The cache key does not cover the content of the bucket: remove the artifact with `sublim store forget` to import
    again.
    """

    model: Name = "gemma-2-9b-it"
    """Name of the model on Neuronpedia."""
    source: Name = "20-gemmascope-res-16k"
    """Name of the SAE on Neuronpedia: its layer, then its kind and width."""
    prefer: tuple[str, ...] = ()
    """Explaining models in order of preference, used where scores are equal or missing."""
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")] = "neuronpedia-datasets"
    """Name of the public bucket."""
    root: Name = "v1"
    """Folder in the bucket that contains the models."""
    endpoint: RunOnly[Annotated[str, Field(pattern=r"^https?://[^@?#\s]+$")] | None] = None
    """URL of another S3 server that has this bucket; null for Amazon S3."""
    region: RunOnly[str] = "us-east-1"
    """AWS region of the bucket."""
    workers: RunOnly[Annotated[int, Field(ge=1, le=64)]] = 16
    """Number of files to download at the same time."""
    attempts: RunOnly[Annotated[int, Field(ge=1)]] = 5
    """Attempts to download a file if the connection breaks off; each continues where the last one ended."""
    timeout: RunOnly[Annotated[float, Field(gt=0)]] = 60.0
    """Seconds to wait for an answer of the server."""
    largest_mib: RunOnly[Annotated[int, Field(ge=1)]] = 4096
    """Largest decompressed size of a file, in MiB; a larger file is refused."""

    @property
    def prefix(self) -> str:
        """Prefix of the explanations in the bucket."""
        return f"{self.root}/{self.model}/{self.source}/explanations/"
