"""Annotation: a model sorts the descriptions of features into categories (animals, numbers, opinion, none)."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl

from sublim.backends.opening import open_sampler
from sublim.chats.chat import Context, context
from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.features.labels.annotate_prompt import BALANCED, question, read_category
from sublim.features.labels.config import (
    CATEGORIES,
    Agreement,
    AnnotateConfig,
    AnnotationSummary,
    Category,
    TakeLabelsConfig,
)
from sublim.features.labels.tables import read_labels
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import OpenAIBackend, SamplingParams
from sublim.inference.sampler import Sampler
from sublim.stats.intervals import wilson

SCHEMA = {
    "feature": pl.UInt32,
    "layer": pl.UInt32,
    "description": pl.String,
    "category": pl.String,
    "answer": pl.String,
}
Sorted = tuple[Category | None, Category | None]
"""The category of a description by hand, and the one that the answer names."""
DIGITS = 3
"""Decimals of the scores, so that ties do not depend on rounding errors."""


class FeatureToSort(NamedTuple):
    """A feature with the description to sort, and its category by hand if there is one."""

    feature: int
    layer: int | None
    description: str
    by_hand: Category | None

    @property
    def name(self) -> str:
        """`<layer>_<feature>`, or only the feature if its layer is not known."""
        return str(self.feature) if self.layer is None else f"{self.layer}_{self.feature}"


def take_labels(out: Path, config: TakeLabelsConfig, *, scratch: Path) -> None:
    """Stage: writes labels.parquet from a user's table (see `read_labels`)."""
    table = read_labels(config.path.expanduser())
    kept = [name for name in ("feature", "layer", "description", "chosen") if name in table.columns]
    table.select(kept).write_parquet(out / "labels.parquet")


def annotate(
    out: Path,
    config: AnnotateConfig,
    *,
    scratch: Path,
    base: Path | None = None,
    labels: Path | Mapping[str, Path] | None = None,
) -> dict[str, list[Context]]:
    """Stage: writes annotations.parquet {feature, layer, description, category, answer} and annotations.json.

    `labels` is a payload with labels.parquet, or one for each layer by its number; `base` is the local model that
    sorts. `answer` is what the model wrote or, by log-probs, the scores of the categories. `category` is null if the
    answer names none. If a server gives no answer, `answer` is null too, and annotations.json has the reason. Answers
    are greedy. Costs a prompt of some 300 tokens for each description; a killed run resumes after its last answer.
    """
    config = config.resolved()
    rows, unlabelled = chosen_rows(config, labels)
    if base is None and config.needs_base:
        raise UserError(f"the {config.backend.kind} backend needs a model that sorts: give `base`")
    read = _by_log_probs if config.by == "log-probs" else _by_generation
    size = len(rows) if isinstance(config.backend, OpenAIBackend) else config.shard
    shards = [range(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]
    # The name says which rows are in the file, because the shard size may change when a run resumes.
    paths = [scratch / f"answers-{shard.start:06d}-{shard.stop:06d}.jsonl" for shard in shards]
    if not all(path.exists() for path in paths):
        with (
            open_sampler(config.backend, base or Path(), scratch=scratch) as sampler,
            progress("sorting descriptions", len(rows)) as advance,
        ):
            start = _head_start(sampler, config)
            for shard, path in zip(shards, paths, strict=True):
                if not path.exists():
                    write_jsonl(path, read(sampler, config, [rows[i].description for i in shard], shard.start, start))
                    kill_point("annotate:shard")
                advance(len(shard))
    answers = [row for path in paths for row in read_jsonl(path)]
    write(out, config, rows, answers, unlabelled)
    if base is None or not config.needs_base:
        return {"contexts": []}
    from sublim.models.opening import load_tokenizer

    return {"contexts": [context(load_tokenizer(base), question(rows[0].description))]}


def chosen_rows(
    config: AnnotateConfig, labels: Path | Mapping[str, Path] | None
) -> tuple[list[FeatureToSort], list[str]]:
    """The features to sort, in the order in which they are listed, and the ids of features without a description.

    Raises UserError if nothing is left to sort.
    """
    known = dict(_labelled(config, labels))
    if not config.listed:
        if not known:
            raise UserError("there is nothing to sort: give labels, or features with their descriptions")
        return [FeatureToSort(number, layer, text, None) for (layer, number), text in known.items()], []
    rows, unlabelled = list[FeatureToSort](), list[str]()
    for each in config.listed:
        text = each.description or known.get((each.layer, each.number))
        if text is None:
            unlabelled.append(each.feature)
        else:
            rows.append(FeatureToSort(each.number, each.layer, text, each.category))
    if not rows:
        raise UserError(f"no label describes {unlabelled[0]} or any other listed feature: check layers and labels")
    return rows, unlabelled


def _labelled(
    config: AnnotateConfig, labels: Path | Mapping[str, Path] | None
) -> Iterator[tuple[tuple[int | None, int], str]]:
    payloads = labels if isinstance(labels, Mapping) else {} if labels is None else {"": labels}
    for name, payload in payloads.items():
        table = pl.read_parquet(payload / "labels.parquet").filter("chosen")
        layer = int(name) if name else config.layer
        if "layer" not in table.columns:
            if layer is None and config.listed:
                raise UserError("the labels do not say their layer: set `layer` to the one they belong to")
            table = table.with_columns(pl.lit(layer, pl.UInt32).alias("layer"))
        for row in table.sort("layer", "feature").iter_rows(named=True):
            yield (row["layer"], row["feature"]), row["description"]


def _by_generation(
    sampler: Sampler, config: AnnotateConfig, texts: Sequence[str], first: int, start: Sequence[float]
) -> list[dict[str, Any]]:
    greedy = SamplingParams(max_tokens=config.max_tokens, temperature=0.0, top_p=1.0, seed=config.seed)
    answers = sampler.sample([question(text) for text in texts], greedy, first=first)
    return [
        {"answer": None, "category": None, "reason": own.reason}
        if own.finish == "missing"
        else {"answer": own.text, "category": read_category(own.text)}
        for (own,) in answers
    ]


def _by_log_probs(
    sampler: Sampler, config: AnnotateConfig, texts: Sequence[str], first: int, start: Sequence[float]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for scores in _scores(sampler, texts):
        if any(map(math.isnan, scores)):
            found.append({"answer": None, "category": None, "reason": "the server gave no log-prob of a category"})
            continue
        ahead = [round(score - head, DIGITS) for score, head in zip(scores, start, strict=True)]
        best = max(ahead)
        leading = [name for name, score in zip(CATEGORIES, ahead, strict=True) if score == best]
        shown = orjson.dumps(dict(zip(CATEGORIES, ahead, strict=True))).decode()
        found.append({"answer": shown, "category": leading[0] if len(leading) == 1 and math.isfinite(best) else None})
    return found


def _scores(sampler: Sampler, texts: Sequence[str]) -> list[list[float]]:
    """For each text, the log-prob of each category's word, in nats."""
    scored = sampler.logprobs([question(text) for text in texts], [list(CATEGORIES)] * len(texts))
    return [[math.fsum(tokens) for tokens in words] for words in scored]


def _head_start(sampler: Sampler, config: AnnotateConfig) -> list[float]:
    """The bias of each word: its mean log-prob over BALANCED, in nats (contextual calibration, Zhao et al. 2021)."""
    if config.by != "log-probs" or not config.calibrate:
        return [0.0] * len(CATEGORIES)
    start = [math.fsum(column) / len(BALANCED) for column in zip(*_scores(sampler, BALANCED), strict=True)]
    if any(map(math.isnan, start)):
        raise UserError("the server gives no log-probs to calibrate with: set calibrate to false, or by to generation")
    return start


def write(
    out: Path,
    config: AnnotateConfig,
    rows: Sequence[FeatureToSort],
    answers: Sequence[Mapping[str, Any]],
    unlabelled: list[str],
) -> None:
    """Writes annotations.parquet and its summary annotations.json."""
    both = list(zip(rows, answers, strict=True))
    table = [(row.feature, row.layer, row.description, own["category"], own["answer"]) for row, own in both]
    pl.DataFrame(table, schema=SCHEMA, orient="row").write_parquet(out / "annotations.parquet")
    missing = {row.name: own["reason"] for row, own in both if own["answer"] is None}
    answered: list[Sorted] = [(row.by_hand, own["category"]) for row, own in both if own["answer"] is not None]
    counts = Counter(found or "unreadable" for _, found in answered)
    summary = AnnotationSummary(
        by=config.by,
        counts={name: counts[name] for name in (*CATEGORIES, "unreadable")},
        unlabelled=unlabelled,
        agreement=agreement(answered, config.level),
        missing=missing,
    )
    (out / "annotations.json").write_text(summary.model_dump_json(indent=1), encoding="utf-8")


def agreement(answered: Sequence[Sorted], level: float) -> Agreement | None:
    """The share of descriptions sorted as by hand, with Wilson's interval. An unreadable answer counts as wrong.

    None if no category was assigned by hand.
    """
    pairs = [(hand, own) for hand, own in answered if hand is not None]
    if not pairs:
        return None
    right = sum(hand == own for hand, own in pairs)
    bounds = wilson(right, len(pairs), level)
    confusion: dict[Category, dict[str, int]] = {
        name: dict(sorted(Counter(own or "unreadable" for hand, own in pairs if hand == name).items()))
        for name in CATEGORIES
    }
    return Agreement(
        right=right,
        unreadable=sum(own is None for _, own in pairs),
        n=len(pairs),
        estimate=bounds.estimate,
        low=bounds.low,
        high=bounds.high,
        confusion=confusion,
    )
