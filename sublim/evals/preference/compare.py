"""The stage that compares students with controls: the effect on every word, by margin and by rate, and on the share of
answers that cannot be read, with intervals."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig
from sublim.evals.effects import Arm, Units, known_mean, paired_effect, read_study, units_of
from sublim.evals.preference.config import (
    METRICS,
    MISSING,
    UNITS,
    UNREADABLE,
    Answers,
    Comparison,
    Metric,
    MetricComparison,
    MetricName,
    Scores,
    metric_of,
)
from sublim.evals.preference.rates import most_frequent
from sublim.stats.intervals import FEW_UNITS

Take = Callable[[Scores], Metric]


def compare_word(
    study: Mapping[Arm, Sequence[Scores]], metric: MetricName, word: str, units: Units, config: CompareConfig
) -> MetricComparison:
    """Compares one metric for one word across base, teacher, student and control.

    Uses the questions with a value for every student and control.
    """
    return compare_metric(study, lambda scores: scores.metrics[metric][word], UNITS[metric], units, config)


def compare_metric(
    study: Mapping[Arm, Sequence[Scores]], take: Take, unit: str, units: Units, config: CompareConfig
) -> MetricComparison:
    """Compares what `take` gives of each model's scores, over questions with a value for every student and control."""
    values = {arm: _matrix(scores, take) for arm, scores in study.items()}
    differences = values["student"] - values["control"]
    used = cast(Bool[ndarray, " q"], np.isfinite(differences).all(axis=0))
    shown = used if used.any() else np.ones_like(used)
    means = {arm: [known_mean(row[shown]) for row in matrix] for arm, matrix in values.items()}
    overall = {arm: known_mean(np.array(found, dtype=float)) for arm, found in means.items()}
    effect = paired_effect(differences, used, units, config) if used.any() else None
    reason = None if effect else _missing(study, take)
    return MetricComparison(
        unit=unit,
        **overall,
        students=means["student"],
        controls=means["control"],
        effect=effect,
        reason=reason,
    )


def _matrix(scores: Sequence[Scores], take: Take) -> Float[ndarray, "s q"]:
    """Models by questions; NaN if the metric is missing."""
    return np.array([take(each).per_question for each in scores], dtype=float)


def _missing(study: Mapping[Arm, Sequence[Scores]], take: Take) -> str:
    for arm in ("student", "control"):
        for number, scores in enumerate(study[arm], start=1):
            if reason := take(scores).reason:
                return f"{arm} {number}: {reason}"
    return "no question has a value for every student and control"


def compare_unread(
    study: Mapping[Arm, Sequence[Scores]], units: Units, config: CompareConfig
) -> tuple[dict[str, MetricComparison], MetricComparison | None]:
    """The shares of answers that cannot be read, for all reasons and by reason, and the share that is missing."""
    unread = {
        reason: compare_metric(study, partial(_unread, reason), UNREADABLE, units, config)
        for reason in study["base"][0].unreadable
    }
    lost = any(scores.missing for arm in study.values() for scores in arm)
    return unread, compare_metric(study, _missing_share, MISSING, units, config) if lost else None


def _unread(reason: str, scores: Scores) -> Metric:
    return scores.unreadable[reason]


def _missing_share(scores: Scores) -> Metric:
    if scores.missing is not None:
        return scores.missing
    return metric_of([0.0 if scores.answers else None] * len(scores.questions), "no answers were sampled")


def compare(
    out: Path,
    config: CompareConfig,
    *,
    scratch: Path,
    students: list[Path],
    controls: list[Path],
    base: Path,
    teacher: Path | list[Path] | None = None,
) -> None:
    """Stage: writes comparison.json (`Comparison`) from payloads of `score`; student i is paired with control i.

    `teacher` may be one payload for each block, of which the mean is reported, or None for an arm without a teacher.
    """
    teachers = [] if teacher is None else teacher if isinstance(teacher, list) else [teacher]
    study = read_study(Scores, base, teachers, students, controls)
    first = study["base"][0]
    units = units_of(len(students), len(controls), config.blocks)
    for scores in (scores for arm in study.values() for scores in arm):
        if (scores.target, scores.words, scores.questions) != (first.target, first.words, first.questions):
            raise UserError("scores of different targets, words or questions cannot be compared: score all alike")
    compared: dict[str, dict[MetricName, MetricComparison]] = {
        word: {metric: compare_word(study, metric, word, units, config) for metric in METRICS} for word in first.words
    }
    unreadable, missing = compare_unread(study, units, config)
    comparison = Comparison(
        target=first.target,
        words=first.words,
        questions=first.questions,
        unit=units.kind,
        about_units=units.sentence,
        leads="these_questions" if len(units.members) < FEW_UNITS else "questions_too",
        metrics=compared.pop(first.target),
        off_target=compared,
        unreadable=unreadable,
        missing=missing,
        answers={arm: summed(scores) for arm, scores in study.items()},
    )
    (out / "comparison.json").write_text(comparison.model_dump_json(indent=1), encoding="utf-8")


def summed(arm: list[Scores]) -> Answers | None:
    """The counts of answers, summed over all models of an arm; None if none were sampled."""
    counted = [scores.answers for scores in arm if scores.answers is not None]
    if not counted:
        return None
    others, unread, missing = Counter[str](), Counter[str](), Counter[str]()
    for answers in counted:
        missing.update(answers.missing)
        others.update(answers.others)
        unread.update(answers.unread)
    return Answers(
        asked=sum(answers.asked for answers in counted),
        readable=sum(answers.readable for answers in counted),
        named={word: sum(answers.named[word] for answers in counted) for word in counted[0].named},
        other=sum(answers.other for answers in counted),
        unread=dict(sorted(unread.items())),
        others=most_frequent(others),
        missing=most_frequent(missing),
    )
