"""Configs for features of an SAE: encoding rows, contrasting sets of rows, overlaps of feature sets. Torch-free."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sublim.core.config import Config, RunOnly
from sublim.files.text_files import Texts, load_text
from sublim.sae.config import StreamConfig

FeatureAt = Literal["last", "mean", "all"]
"""Which of a row's own tokens (see `sublim.sae.stream`): the last, all as one mean of features, or each of them."""


class EncodeConfig(StreamConfig):
    """Which tokens of which rows are encoded, and which features are kept."""

    tokens: FeatureAt = "mean"
    """last: the last token of the part. mean: the mean of the features over its tokens. all: every token."""
    part: Literal["answer", "row"] = "answer"
    """answer: the tokens of a chat's answer. row: all tokens. A plain text has no answer and is encoded whole."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to use, from the start; null for all."""
    weights_update: int | None = None
    """Checkpoint of the trained weights to use, by its number of updates; null for the last."""
    top: Annotated[int, Field(ge=1)] | None = None
    """Number of features to keep for each entry (a token, or a row's mean), the largest; null for all above
    `threshold`."""
    threshold: Annotated[float, Field(ge=0)] = 0.0
    """Features are kept if their value is above this."""
    shard: Annotated[int, Field(ge=1)] = 256
    """Rows in each output file. Memory grows with this number alone; a crash loses at most one file."""
    read: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Tokens in one forward pass, padding included; null for as many as fit into memory."""


class Sentences(Config):
    """Plain sentences that a word is put into."""

    sentences: Texts
    """Each ends with the placeholder {word}, so that the tokens of the word come last."""

    @field_validator("sentences")
    @classmethod
    def _end_with_the_word(cls, sentences: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [each for each in sentences if not each.endswith("{word}") or each.count("{word}") != 1]:
            raise ValueError(f'"{wrong[0]}" must end with {{word}}')
        return sentences


class WordRowsConfig(Config):
    """Rows with words in plain sentences, or as the answer of a chat."""

    words: Annotated[tuple[str, ...], Field(min_length=1)]
    """The words; every word is put into every frame."""
    context: Literal["plain", "chat"]
    """plain: sentences that end with the word. chat: questions that the word answers."""
    frames: Texts
    """The sentences, each with {word} at its end, or the questions."""


class ContrastConfig(Config):
    """Comparison of two sets of rows, feature by feature. The unit of the test is the row."""

    sae: str
    """Name of the SAE by site and layer, such as resid_post-9."""
    pair: bool = True
    """Pair the rows with equal ids: answers to the same prompt, or the same text read by two models."""
    fewest: Annotated[int, Field(ge=1)] = 10
    """Smallest number of rows, of both sides together, in which a feature must fire to be tested."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """False discovery rate: expected share of false positives among significant features (Benjamini-Hochberg)."""


class OverlapConfig(Config):
    """Which sets of features share more features than expected by chance."""

    size: Annotated[int, Field(ge=1)] = 30
    """Largest number of features in a set: the significant ones with the largest effects."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """A feature is significant if its q-value is at most this."""
    bins: Annotated[int, Field(ge=1)] = 10
    """Number of equally large classes of firing rate. Permuted sets have as many features of each class as the set."""
    permutations: Annotated[int, Field(ge=99)] = 4999
    """How often the sides of the rows are permuted; no p is below one over this."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the permutations."""


class ExamplesConfig(Config):
    """Which rows to show for features: those in which their values are largest."""

    sae: str
    """Name of the SAE by site and layer, such as resid_post-9."""
    features: Annotated[int, Field(ge=1)] = 20
    """Number of features, those with the largest effects in the contrast."""
    examples: Annotated[int, Field(ge=1)] = 3
    """Rows shown for each feature."""
    around: Annotated[int, Field(ge=0)] = 8
    """Tokens shown before and after the one with the largest value."""


class VectorFeaturesConfig(Config):
    """Comparison of steering vectors with the decoder rows of an SAE."""

    top: Annotated[int, Field(ge=1)] = 20
    """Features listed for each vector, those with the largest absolute cosine."""


class OverlapRow(Config):
    """Two sets of features and the overlap between them."""

    first: str
    second: str
    sizes: tuple[int, int]
    """Number of features in each set, at most `size` of the config."""
    shared: int
    """Number of features in both sets."""
    chance: float
    """Mean overlap of the second set with those that the first contrast's rows give when their sides are permuted, or
    the other way round: the way with the larger p-value is used. Features that fire together stay together."""
    low: float
    high: float
    """The central 95 % interval of the overlap of permuted sets."""
    p: float | None
    """Permutation p-value: the share of sets that share at least as many features, among the permuted ones and this
    one; null if a set is empty."""
    p_adjusted: float | None = None
    """p corrected for all pairs of sets in the table (Holm)."""
    features: list[int]
    """The shared features."""


def bundled_sentences() -> tuple[str, ...]:
    """The sentences that are bundled with the package."""
    return load_text(Sentences, "sentences").sentences


class FeatureFiguresConfig(Config):
    """Figures of the contrasts of one SAE."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """A feature is significant if its q-value is at most this."""
