"""Steering sweeps (one model is asked the same questions under many steerings) and their dose-response curves."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from sublim.backends.opening import open_steerable
from sublim.chats.chat import chat
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.evals.mmlu_pro.config import LETTERS
from sublim.evals.mmlu_pro.exam import likeliest, question_text, share
from sublim.evals.preference.config import Metric
from sublim.evals.preference.score import margin
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.sampler import Steerable
from sublim.residual.edits import Edit, Steering, VectorNote
from sublim.residual.vectors import read_vectors
from sublim.stats.intervals import clustered_share, t_bounds
from sublim.steering.dose_curve_config import Curve, CurveConfig, SteeredPoint, SweepConfig
from sublim.training.checkpoints import chosen_weights
from sublim.traits.words import Reader, written


def sweep(
    out: Path,
    config: SweepConfig,
    *,
    scratch: Path,
    base: Path,
    vectors: Path,
    weights: Path | None = None,
    exam: Path | None = None,
) -> dict[str, Any]:
    """Stage: writes logprobs.parquet {point, question, word, logprob}, answers.jsonl {point, question, sample, text,
    finish}, letters.jsonl {point, right}, questions.jsonl and points.jsonl.

    The model is loaded once. Each point costs one scoring of questions x words. Points that are not random controls
    also cost questions x samples short answers and one scoring of every MMLU-Pro question in `exam`. After a crash,
    finished points are not repeated.
    """
    points: list[Steering | None] = [None, *config.points]
    notes = {name: vector.note for name, vector in read_vectors(vectors).items()}
    described = [_described(number, point, notes) for number, point in enumerate(points)]
    questions = list(read_jsonl(exam / "questions.jsonl")) if exam else []
    paths = [scratch / f"point-{number:05d}.jsonl" for number in range(len(points))]
    # Points that differ only in vector and strength come in a row, because they share CUDA graphs.
    order = sorted(range(len(points)), key=lambda number: _structure(points[number], notes))
    missing = [number for number in order if not paths[number].exists()]
    with progress("steered points", len(points)) as advance:
        advance(len(points) - len(missing))
        if missing:
            with open_steerable(config.backend, base, weights=chosen_weights(weights, config.weights_update)) as model:
                # All names, layers and widths are checked before the first point.
                edits = [model.edits(point, vectors) if point else [] for point in points]
                for number in missing:
                    model.steer(edits[number])
                    rows = [*_scored(model, config)]
                    if not described[number]["control"]:
                        rows += [*_answered(model, config), *_examined(model, questions)]
                    write_jsonl(paths[number], rows)
                    kill_point("sweep:point")
                    advance(1)
    rows = [{"point": number, **row} for number, path in enumerate(paths) for row in read_jsonl(path)]
    scored = [row for row in rows if "word" in row]
    pl.DataFrame(scored, schema=["point", "question", "word", "logprob"]).write_parquet(out / "logprobs.parquet")
    write_jsonl(out / "answers.jsonl", (row for row in rows if "text" in row))
    write_jsonl(out / "questions.jsonl", ({"question": i, "text": text} for i, text in enumerate(config.questions)))
    write_jsonl(out / "letters.jsonl", (row for row in rows if "right" in row))
    write_jsonl(out / "points.jsonl", described)
    return {"points": len(points)}


def _structure(point: Steering | None, notes: Mapping[str, VectorNote]) -> list[tuple[int, str, str, str]]:
    edits = point.edits if point else ()
    return [(notes[e.vector].layer, notes[e.vector].site, e.kind, e.tokens) for e in edits]


def _described(number: int, point: Steering | None, notes: dict[str, VectorNote]) -> dict[str, Any]:
    edits = point.edits if point else ()
    return {
        "point": number,
        "edits": [edit.model_dump() for edit in edits],
        "layers": [notes[edit.vector].layer for edit in edits],
        "control": any(notes[edit.vector].source == "random" for edit in edits),
    }


def _scored(model: Steerable, config: SweepConfig) -> Iterator[dict[str, Any]]:
    chats = [chat(question, system=config.system) for question in config.questions]
    continuations = [[written(word) for word in config.words]] * len(chats)
    for question, words in enumerate(model.logprobs(chats, continuations)):
        for word, tokens in zip(config.words, words, strict=True):
            yield {"question": question, "word": word, "logprob": sum(tokens)}


def _answered(model: Steerable, config: SweepConfig) -> Iterator[dict[str, Any]]:
    if not config.samples:
        return
    chats = [chat(question, system=config.system) for question in config.questions]
    params = config.sampling.model_copy(update={"n": config.samples})
    for question, answers in enumerate(model.sample(chats, params)):
        for sample, answer in enumerate(answers):
            yield {"question": question, "sample": sample, "text": answer.text, "finish": answer.finish}


def _examined(model: Steerable, questions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Whether the likeliest of the offered letters is the right one; null if no single letter is likeliest."""
    chats = [chat(question_text(row["question"], row["options"])) for row in questions]
    offered = [list(LETTERS[: len(row["options"])]) for row in questions]
    for row, letters in zip(questions, model.logprobs(chats, offered) if questions else [], strict=True):
        place, _ = likeliest([sum(tokens) for tokens in letters])
        yield {"right": None if place is None else place == row["answer"]}


def steering_curve(out: Path, config: CurveConfig, *, scratch: Path, swept: Path) -> None:
    """Stage: writes curve.json (`Curve`) with the effect of every steering on the target's margin and rate."""
    config = config.listed()
    metrics, reader = margins(swept, config.target, config.words), Reader(config.words)
    answers, letters = by_point(swept / "answers.jsonl"), by_point(swept / "letters.jsonl")
    points: list[SteeredPoint] = []
    for row in read_jsonl(swept / "points.jsonl"):
        at = row["point"]
        marks = answer_marks(answers[at], reader, config, control=row["control"])
        marks |= exam_marks([letter["right"] for letter in letters[at]], config.level, control=row["control"])
        points.append(described_point(row, metrics[at], metrics[0], marks, config))
    curve = Curve(
        target=config.target,
        words=config.words,
        questions=len(metrics[0].per_question),
        level=config.level,
        points=with_random(points),
    )
    (out / "curve.json").write_text(curve.model_dump_json(indent=1), encoding="utf-8")


def margins(swept: Path, target: str, words: list[str]) -> dict[int, Metric]:
    """The target's margin for every question, by point."""
    table = pl.read_parquet(swept / "logprobs.parquet")
    missing = [word for word in words if word not in set(table["word"])]
    assert not missing, f"{missing} were not asked"
    wide = table.filter(pl.col("word").is_in(words)).pivot("word", index=["point", "question"], values="logprob")
    return {
        int(rows["point"][0]): margin(rows.select(words).to_numpy(), words, words.index(target))
        for rows in wide.sort("point", "question").partition_by("point")
    }


def by_point(path: Path) -> defaultdict[int, list[dict[str, Any]]]:
    """The rows of a file by their point."""
    found = defaultdict[int, list[dict[str, Any]]](list)
    for row in read_jsonl(path):
        found[row["point"]].append(row)
    return found


def answer_marks(
    answers: list[dict[str, Any]], reader: Reader, config: CurveConfig, *, control: bool
) -> dict[str, Any]:
    """A point's rates, that over all answers asked with its interval, or the reason why it has none. Every question has
    the same weight."""
    named, readable = defaultdict[int, list[bool]](list), defaultdict[int, list[bool]](list)
    for row in answers:
        reading = reader.read(row["text"], row["finish"])
        named[row["question"]].append(reading.word == config.target)
        if reading.unread is None:
            readable[row["question"]].append(reading.word == config.target)
    known: dict[str, Any] = {"answers": len(answers), "readable": sum(map(len, readable.values()))}
    if not named:
        none = "random vectors are scored alone" if control else "no answers were sampled (samples = 0)"
        return {**known, "rate": None, "rate_reason": none}
    found = clustered_share(_mean_share(named), len(named), config.level)
    known |= {"rate_readable": _mean_share(readable) if readable else None}
    return {**known, "rate": found.estimate, "rate_low": found.low, "rate_high": found.high}


def _mean_share(marks: Mapping[int, list[bool]]) -> float:
    return float(np.mean([np.mean(own) for own in marks.values()]))


def exam_marks(letters: list[bool | None], level: float, *, control: bool) -> dict[str, Any]:
    """A point's MMLU-Pro accuracy with its interval, or the reason why it has none."""
    found = share(letters, level)
    none = "random vectors are scored alone" if control else "no questions were asked"
    return {
        "mmlu_pro": found.estimate,
        "mmlu_pro_low": found.low,
        "mmlu_pro_high": found.high,
        "mmlu_pro_read": found.read,
        "mmlu_pro_reason": found.reason and ("no question has a likeliest letter" if letters else none),
    }


def described_point(
    row: dict[str, Any], metric: Metric, unsteered: Metric, marks: dict[str, Any], config: CurveConfig
) -> SteeredPoint:
    """One point compared with the model without steering, question by question."""
    edits = [Edit.model_validate(edit) for edit in row["edits"]]
    apart = paired_differences(metric, unsteered)
    low, high = t_bounds(apart, config.level)
    return SteeredPoint(
        point=row["point"],
        layers=row["layers"],
        vectors=[edit.vector for edit in edits],
        kind=edits[0].kind if edits else None,
        alpha=edits[0].strength if edits else 0.0,
        scale=edits[0].scale if edits else "raw",
        position=edits[0].tokens if edits else "none",
        control=row["control"],
        margin=metric.mean,
        estimate=float(apart.mean()) if len(apart) else None,
        low=low,
        high=high,
        **marks,
        questions=len(apart),
        reason=None if len(apart) else metric.reason or "no question has a finite margin",
    )


def paired_differences(metric: Metric, unsteered: Metric) -> Float[ndarray, " q"]:
    """Margin with steering minus margin without, for the questions that have both."""
    pairs = zip(metric.per_question, unsteered.per_question, strict=True)
    return np.array([a - b for a, b in pairs if a is not None and b is not None])


def with_random(points: list[SteeredPoint]) -> list[SteeredPoint]:
    """Each point with the range of the random controls that have the same layers, edit, strength and tokens."""
    fellows = defaultdict[object, list[float]](list)
    for point in points:
        if point.control and point.estimate is not None:
            fellows[_grid(point)].append(point.estimate)
    return [point if point.control else _against(point, fellows.get(_grid(point), [])) for point in points]


def _grid(point: SteeredPoint) -> object:
    return tuple(point.layers), point.kind, point.alpha, point.scale, point.position


def _against(point: SteeredPoint, random: list[float]) -> SteeredPoint:
    if not random or point.estimate is None:
        return point
    as_far = sum(abs(value) >= abs(point.estimate) for value in random)
    return point.model_copy(
        update={
            "random_low": min(random),
            "random_high": max(random),
            "random": len(random),
            "beyond_random": (1 + as_far) / (1 + len(random)),
        }
    )
