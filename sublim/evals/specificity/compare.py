"""The stage that compares the students of every target's teacher with those of the other targets' teachers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.effects import Units, known_mean, units_of
from sublim.evals.preference.compare import FEW_UNITS
from sublim.evals.preference.config import METRICS, MetricName, Scores
from sublim.evals.specificity.config import CompareTargetsConfig, Specificity
from sublim.evals.specificity.tables import Values, table_of


def compare_targets(
    out: Path,
    config: CompareTargetsConfig,
    *,
    scratch: Path,
    students: list[Path],
    controls: list[Path],
    teachers: list[Path] | None = None,
) -> None:
    """Stage: writes specificity.json (`Specificity`) from payloads of `score`.

    `students` holds those of the first target in the order of the units, then those of the second, and so on;
    `controls` one for each unit that all targets share, or one for each student where targets have controls of their
    own; they may be the same payload throughout (the untrained base). `teachers` is ordered like the students, with as
    many for each target. Every payload must have scores for all words of the config.
    """
    count = len(config.targets)
    if len(students) % count or len(controls) not in (len(students), len(students) // count):
        raise UserError(
            f"{len(students)} students of {count} targets and {len(controls)} controls do not pair: give as many "
            "students for each target, and one control for each student or for each unit"
        )
    if len(controls) < len(students):
        controls = [*controls] * count
    units = units_of(len(students) // count, len(controls) // count, config.compare.blocks)
    scores = {"student": _read(students), "control": _read(controls), "teacher": _read(teachers or [])}
    first = scores["control"][0]
    for each in (one for group in scores.values() for one in group):
        if {*each.words} != {*config.words} or each.questions != first.questions:
            raise UserError("scores of different words or questions cannot be compared: score all alike")
    found = Specificity(
        targets=config.targets,
        words=config.words,
        unit=units.kind,
        about_units=about(units, count),
        leads="these_questions" if len(units.members) < FEW_UNITS else "questions_too",
        metrics={},
    )
    for metric in METRICS:
        student, control = (
            each.reshape(count, -1, *each.shape[1:])
            for each in (_values(scores[arm], metric, config.words) for arm in ("student", "control"))
        )
        values = Values(student, control)
        if not values.used.any():
            found.missing[metric] = _reason([*scores["student"], *scores["control"]], metric)
            continue
        table = table_of(values, units, config)
        if scores["teacher"]:
            found.metrics[metric] = table.model_copy(update={"teachers": _teachers(scores["teacher"], metric, config)})
        else:
            found.metrics[metric] = table
    (out / "specificity.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")


def about(units: Units, targets: int) -> str:
    """What the units are, and what an interval over them does not cover."""
    if units.kind == "block":
        return (
            f"The units are {len(units.members)} blocks, each with its own teacher and rows for each of {targets} "
            "targets."
        )
    count = len(units.members)
    return (
        f"One teacher for each target: the units are {count} seed{'s' if count > 1 else ''} within one block, so the "
        "intervals say nothing about other teachers of the same targets or about other rows."
    )


def _read(payloads: Sequence[Path]) -> list[Scores]:
    return [Scores.model_validate_json((payload / "scores.json").read_bytes()) for payload in payloads]


def _values(scores: Sequence[Scores], metric: MetricName, words: Sequence[str]) -> Float[ndarray, "n w q"]:
    return np.array([[each.metrics[metric][word].per_question for word in words] for each in scores], dtype=float)


def _teachers(
    scores: Sequence[Scores], metric: MetricName, config: CompareTargetsConfig
) -> dict[str, dict[str, float | None]]:
    values = _values(scores, metric, config.words)
    each = values.reshape(len(config.targets), -1, *values.shape[1:])
    return {
        target: {word: known_mean(own[:, i]) for i, word in enumerate(config.words)}
        for target, own in zip(config.targets, each, strict=True)
    }


def _reason(scores: Sequence[Scores], metric: MetricName) -> str:
    given = (found.reason for each in scores for found in each.metrics[metric].values() if found.reason)
    return next(given, "no question has a value for every model and word")
