"""Features of an SAE on rows: how they are kept, what is set against what, which sets overlap. Torch-free."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sublim.core.config import Config, RunOnly
from sublim.files.text_files import Texts, load_text
from sublim.sae.config import StreamConfig

FeatureAt = Literal["last", "mean", "all"]
"""Of a row's own tokens: the last alone, the mean of their features (not the features of their mean), or each one."""


class EncodeConfig(StreamConfig):
    """Which tokens of which rows are encoded, and what is kept."""

    tokens: FeatureAt = "mean"
    """Which tokens of the part."""
    part: Literal["answer", "row"] = "answer"
    """A chat's answer, or everything of the row; a plain text has no answer and is read whole."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows; null for all."""
    weights_update: int | None = None
    """Which checkpoint of a training payload reads; null for its last."""
    top: Annotated[int, Field(ge=1)] | None = None
    """Keep so many features of an entry, the largest; null for all above `threshold`."""
    threshold: Annotated[float, Field(ge=0)] = 0.0
    """Keep what is above this."""
    shard: Annotated[int, Field(ge=1)] = 256
    """Rows in a file; memory grows with it and with nothing else, and a crash loses no more than these."""
    read: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Tokens in one pass of the model, padding included; by default what the memory holds."""


class Sentences(Config):
    """Plain sentences for a word."""

    sentences: Texts
    """Each ends with the placeholder {word}: the word's own tokens are the last ones read."""

    @field_validator("sentences")
    @classmethod
    def _end_with_the_word(cls, sentences: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [each for each in sentences if not each.endswith("{word}") or each.count("{word}") != 1]:
            raise ValueError(f'"{wrong[0]}" must end with {{word}}')
        return sentences


class WordRowsConfig(Config):
    """Rows in which words stand in plain sentences or as a chat's answer."""

    words: Annotated[tuple[str, ...], Field(min_length=1)]
    """One word for its own rows, several for those that it is set against."""
    context: Literal["plain", "chat"]
    """plain: sentences that end with the word; chat: questions of which it is the answer."""
    frames: Texts
    """The sentences, with {word} in each, or the questions."""


class ContrastConfig(Config):
    """One set of rows against another, feature by feature; the unit is the row."""

    sae: str
    """Which SAE's features, as in resid_post-9."""
    pair: bool = True
    """Set rows of one id against each other (the same prompt, or the same text with two readers)."""
    fewest: Annotated[int, Field(ge=1)] = 10
    """A feature is tested when it fires in at least so many rows of the two sides together."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Expected share of false ones among those called significant (Benjamini-Hochberg)."""


class OverlapConfig(Config):
    """Which sets of features have more in common than chance gives."""

    size: Annotated[int, Field(ge=1)] = 30
    """Features of a set: the largest effects among the significant ones, at most so many."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Significant is a feature whose q is at most this."""
    bins: Annotated[int, Field(ge=1)] = 10
    """Classes of firing rate, equally full; random sets have as many features of each class as the set itself."""


class ExamplesConfig(Config):
    """Rows to show for features: where they are strongest."""

    sae: str
    """Which SAE's features."""
    features: Annotated[int, Field(ge=1)] = 20
    """The largest effects of the contrast."""
    examples: Annotated[int, Field(ge=1)] = 3
    """Rows of each."""
    around: Annotated[int, Field(ge=0)] = 8
    """Tokens shown before and after the strongest."""


class VectorFeaturesConfig(Config):
    """Steering vectors in terms of an SAE's decoder."""

    top: Annotated[int, Field(ge=1)] = 20
    """Features of each vector, by the size of the cosine."""


class OverlapRow(Config):
    """Two sets of features and what they share."""

    first: str
    second: str
    sizes: tuple[int, int]
    """How many significant features each has, at most as many as were asked for."""
    shared: int
    chance: float
    """Mean number that random features, matched to one set's in their firing rate, share with the other set; of the
    two ways round the one that makes what is shared the likelier."""
    low: float
    high: float
    """The middle 95 % of that number over random sets."""
    p: float | None
    """How likely such a random set shares at least as many, computed and not drawn; null where a set is empty."""
    p_adjusted: float | None = None
    """The same, corrected for all pairs of this table (Holm)."""
    features: list[int]
    """What is shared."""

    @field_validator("features")
    @classmethod
    def _in_order(cls, features: list[int]) -> list[int]:
        return sorted(features)


def bundled_sentences() -> tuple[str, ...]:
    """The sentences that come with the installation."""
    return load_text(Sentences, "sentences").sentences


class FeatureFiguresConfig(Config):
    """Figures of one SAE's contrasts."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Significant is a feature whose q is at most this."""
