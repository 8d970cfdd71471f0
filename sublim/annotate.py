"""Sorting descriptions of features into categories by a model's answers.

    annotations.parquet    feature, layer, description, category (null: could not be read), answer

`answer` is what the model wrote, or every category's log-prob. An answer that names no category, or several, or wraps
one in a sentence, is unreadable: counted, kept, and never a `none`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from sublim.annotate_config import AnnotateConfig
from sublim.chat import Chat, Message, chat
from sublim.errors import UserError
from sublim.inference import OpenAIBackend, Sampler, open_sampler
from sublim.jsonl import read_jsonl, write_jsonl
from sublim.killpoints import kill_point
from sublim.progress import progress

SCHEMA = {
    "feature": pl.UInt32,
    "layer": pl.UInt32,
    "description": pl.String,
    "category": pl.String,
    "answer": pl.String,
}
BATCH = 32
NOTHING = "N/A"
"""Stands for a description that says nothing."""


class Item(NamedTuple):
    """What is asked about."""

    feature: int
    layer: int | None
    description: str


def annotate(
    out: Path,
    config: AnnotateConfig,
    *,
    scratch: Path,
    labels: Path | Mapping[str, Path] | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Stage: writes annotations.parquet. `labels` is a payload with labels.parquet, or one for each layer.

    Costs a short answer for each description; resumes after the last answer kept.
    """
    config = config.resolved()
    items = wanted(config, labels)
    answers = _answers(config, items, scratch, base)
    read = read_answer if config.by == "generation" else likeliest
    found = [read(answer, list(config.categories)) for answer in answers]
    lines = [(*item, category, answer) for item, category, answer in zip(items, found, answers, strict=True)]
    pl.DataFrame(lines, schema=SCHEMA, orient="row").write_parquet(out / "annotations.parquet")
    counts = {name: found.count(name) for name in config.categories}
    return {"by": config.by, "asked": len(items), "unreadable": found.count(None), "counts": counts}


def wanted(config: AnnotateConfig, labels: Path | Mapping[str, Path] | None) -> list[Item]:
    """The descriptions in the order of layers and features, each once."""
    items = [Item(each.feature, each.layer, each.description) for each in config.features]
    tables = {str(config.layer): labels} if isinstance(labels, Path) else dict(labels or {})
    known: dict[str, Item] = {}
    for layer, payload in tables.items():
        table = pl.read_parquet(payload / "labels.parquet").filter("chosen")
        number = None if layer == "None" else int(layer)
        for feature, description in table.select("feature", "description").iter_rows():
            known[f"{layer}_{feature}"] = Item(feature, number, description)
    if config.only:
        if missing := [name for name in config.only if name not in known]:
            raise UserError(f"there is no label for {', '.join(missing[:5])}: look at layers and labels")
        items += [known[name] for name in config.only]
    else:
        items += known.values()
    if not items:
        raise UserError("there is nothing to annotate: give features or labels")
    return sorted(set(items), key=lambda item: (item.layer is None, item.layer or 0, item.feature, item.description))


def question(config: AnnotateConfig, description: str) -> Chat:
    """The chat that asks about one description: the instruction with worked examples, then the question."""
    named = "\n".join(f"- {name}: {meaning}" for name, meaning in config.categories.items())
    opening = config.instruction.format(categories=named, names=", ".join(config.categories))
    turns = Chat()
    for each in config.examples:
        turns += chat(config.question.format(description=each.description), assistant=each.category)
    turns += chat(config.question.format(description=description))
    # In the first user turn: not every template has a system role.
    return [Message(role="user", content=f"{opening}\n\n{turns[0]['content']}"), *turns[1:]]


def read_answer(answer: str, categories: Sequence[str]) -> str | None:
    """The category that an answer opens with, when it names no other."""
    words = re.findall(r"[^\W\d_]+", answer.casefold())
    if words[:1] in (["kind"], ["answer"], ["category"]):
        words = words[1:]
    known = {form: name for name in categories for form in (name.casefold(), name.casefold().removesuffix("s"))}
    named = {known[word] for word in words if word in known}
    return known[words[0]] if words and words[0] in known and len(named) == 1 else None


def likeliest(answer: str, categories: Sequence[str]) -> str | None:
    """The category with the highest score in `shown`'s form; a tie cannot be read."""
    scores = {name: float(score) for name, score in (part.split("=") for part in answer.split())}
    best = max(scores.values())
    names = [name for name in categories if scores[name] == best]
    return names[0] if len(names) == 1 else None


def shown(scores: Mapping[str, float]) -> str:
    """Scores as text, to the thousandth of a nat."""
    return " ".join(f"{name}={score:.3f}" for name, score in scores.items())


def _answers(config: AnnotateConfig, items: list[Item], scratch: Path, base: Path | None) -> list[str]:
    """One answer an item, from scratch where it is there."""
    if config.needs_base and base is None:
        raise UserError(f"the backend {config.backend.kind} needs a model: give base, or take a chat server")
    size = config.batch or (len(items) if isinstance(config.backend, OpenAIBackend) else BATCH)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    # Named by their first item, so that another `batch` does not take them for its own.
    paths = [scratch / f"answers-{number * size:06d}-{len(part):06d}.jsonl" for number, part in enumerate(parts)]
    with progress("annotating", len(items)) as advance:
        if not all(path.exists() for path in paths):
            with open_sampler(config.backend, base or scratch, scratch=scratch) as sampler:
                zero = _prior(config, sampler)
                for number, (path, part) in enumerate(zip(paths, parts, strict=True)):
                    if not path.exists():
                        _keep(path, ask_part(config, sampler, part, number * size, zero))
                        kill_point("annotate:part")
                    advance(len(part))
    return [row["answer"] for path in paths for row in read_jsonl(path)]


def ask_part(
    config: AnnotateConfig, sampler: Sampler, part: Sequence[Item], first: int, zero: Mapping[str, float]
) -> list[str]:
    """The answers about some items, the first of which is number `first`."""
    chats = [question(config, item.description) for item in part]
    if config.by == "generation":
        return [answers[0].text for answers in sampler.sample(chats, config.sampling, first=first)]
    return [
        shown({name: score - zero[name] for name, score in scores.items()})
        for scores in _scores(config, sampler, chats)
    ]


def _prior(config: AnnotateConfig, sampler: Sampler) -> dict[str, float]:
    """What each category has without a description (contextual calibration, Zhao et al. 2021)."""
    if config.by == "generation" or not config.calibrate:
        return dict.fromkeys(config.categories, 0.0)
    [scores] = _scores(config, sampler, [question(config, NOTHING)])
    return scores


def _scores(config: AnnotateConfig, sampler: Sampler, chats: list[Chat]) -> list[dict[str, float]]:
    found = sampler.logprobs(chats, [list(config.categories)] * len(chats))
    return [dict(zip(config.categories, map(sum, words), strict=True)) for words in found]


def _keep(path: Path, answers: Sequence[str]) -> None:
    """Writes answers so that `path` is there whole or not at all."""
    draft = path.with_suffix(".draft")
    write_jsonl(draft, ({"answer": answer} for answer in answers))
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
