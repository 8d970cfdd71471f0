"""The score sheet: every metric of every model in one table, with intervals over questions."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from sublim.evals.mmlu_pro.compare import against
from sublim.evals.mmlu_pro.config import LetterMetric, LetterScores, MmluProScores, Share
from sublim.evals.preference.config import ALL, METRICS, UNITS, UNREADABLE, Answers, Metric, Scores
from sublim.evals.sheet.config import ScoreRow, SheetConfig
from sublim.evals.sheet.figures import draw_rows
from sublim.evals.total_variation.config import SHIFTS, Shifts
from sublim.stats.intervals import clustered_share, paired_t

THIS_MODEL = "questions like these, for this one model"
SHARES = ("rate", "rate_readable", "unreadable")
WHOLE = ("n", "answers", "asked")
REAL = ("estimate", "low", "high", "floor", "p")
SCHEMA = {
    name: pl.Int64 if name in WHOLE else pl.Float64 if name in REAL else pl.String for name in ScoreRow.model_fields
}


def collect_scores(
    out: Path,
    config: SheetConfig,
    *,
    scratch: Path,
    scores: Mapping[str, Path],
    shifts: Mapping[str, Path] | None = None,
    mmlu: Mapping[str, Path] | None = None,
) -> None:
    """Stage: writes scores.json, scores.parquet, scores.csv and a figure for each group of metrics.

    `scores` and `shifts` have keys `<questions>/<model>`; `mmlu` has the models as keys.
    """
    rows = [
        *_preferences(config, scores),
        *_shifted(config, shifts or {}),
        *_capability(config, mmlu or {}),
    ]
    table = [row.model_dump() for row in rows]
    (out / "scores.json").write_text(json.dumps(table, indent=1, ensure_ascii=False), encoding="utf-8")
    frame = pl.DataFrame(table, schema=SCHEMA)
    frame.write_parquet(out / "scores.parquet")
    frame.write_csv(out / "scores.csv")
    draw_rows(out, rows)


def _preferences(config: SheetConfig, payloads: Mapping[str, Path]) -> Iterator[ScoreRow]:
    for name, payload in payloads.items():
        questions, _, model = name.partition("/")
        scores = Scores.model_validate_json((payload / "scores.json").read_bytes())
        for word in config.words[questions]:
            for metric in METRICS:
                row = _over_questions(config, model, metric, questions, UNITS[metric], scores.metrics[metric][word])
                yield _counted(row, None if metric == "margin" else scores.answers).model_copy(update={"word": word})
        row = _over_questions(config, model, "unreadable", questions, UNREADABLE, scores.unreadable[ALL])
        yield _counted(row, scores.answers)


def _counted(row: ScoreRow, counts: Answers | None) -> ScoreRow:
    """The row with its counts: of answers, of those that cannot be read by reason, of those a server failed to give."""
    if counts is None:
        return row
    about = [row.about]
    if row.metric == "unreadable" and counts.unread:
        about.append("by reason: " + ", ".join(f"{reason} {count}" for reason, count in counts.unread.items()))
    if counts.missing:
        about.append("missing answers: " + "; ".join(f"{count}: {reason}" for reason, count in counts.missing.items()))
    return row.model_copy(update={"about": "; ".join(about), "answers": counts.readable, "asked": counts.asked})


def _shifted(config: SheetConfig, payloads: Mapping[str, Path]) -> Iterator[ScoreRow]:
    for name, payload in payloads.items():
        questions, _, model = name.partition("/")
        shifts = Shifts.model_validate_json((payload / "shift.json").read_bytes())
        for metric in SHIFTS:
            unit = f"distance to {config.models[0]}, 0 to 1"
            row = _over_questions(config, model, metric, questions, unit, shifts.metrics[metric])
            yield row.model_copy(update={"floor": shifts.floor, "p": shifts.p} if metric == "tv_sampled" else {})


def _over_questions(config: SheetConfig, model: str, metric: str, questions: str, unit: str, found: Metric) -> ScoreRow:
    """The mean of a metric over questions, with a t interval over questions for this one model.

    A share has Wilson's interval, with questions as trials: if a model never names a word, a t interval has no width.
    """
    values = np.array([value for value in found.per_question if value is not None])
    interval = paired_t(values, config.level) if len(values) > 1 else None
    if metric in SHARES and len(values):
        interval = clustered_share(float(values.mean()), len(values), config.level)
    return ScoreRow(
        model=model,
        metric=metric,
        questions=questions,
        unit=unit,
        estimate=found.mean,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n=len(values),
        about=THIS_MODEL,
        reason=found.reason,
    )


def _capability(config: SheetConfig, payloads: Mapping[str, Path]) -> Iterator[ScoreRow]:
    read = {
        model: MmluProScores.model_validate_json((payload / "scores.json").read_bytes())
        for model, payload in payloads.items()
    }
    for model, scores in read.items():
        for metric, found in scores.metrics.items():
            if found is None:
                yield _letter_row(model, metric, "mmlu_pro", None)
                continue
            yield _letter_row(model, metric, "mmlu_pro", found.overall, found)
            for category, share in found.by_category.items():
                yield _letter_row(model, metric, f"mmlu_pro/{category}", share)
            reference = read[config.models[0]].metrics[metric]
            if model != config.models[0] and reference is not None:
                yield _difference(config, model, metric, found, reference)


def _letter_row(
    model: str, metric: LetterMetric, questions: str, share: Share | None, found: LetterScores | None = None
) -> ScoreRow:
    unread = ", ".join(f"{reason} {count}" for reason, count in found.unread.items()) if found else ""
    return ScoreRow(
        model=model,
        metric=metric,
        questions=questions,
        unit="share right of the readable",
        estimate=share.estimate if share else None,
        low=share.low if share else None,
        high=share.high if share else None,
        n=share.read if share else 0,
        about=f"Wilson's; not readable: {unread}" if unread else "Wilson's; questions like these",
        answers=share.read if share else None,
        asked=share.asked if share else None,
        reason=share.reason if share else "no letters were generated (mmlu_pro.generate=false)",
    )


def _difference(
    config: SheetConfig, model: str, metric: LetterMetric, found: LetterScores, reference: LetterScores
) -> ScoreRow:
    """A model minus the reference, paired on the questions for which both answers could be read."""
    ours, theirs = (np.array(each.per_question, dtype=float) for each in (found, reference))
    both = np.isfinite(ours) & np.isfinite(theirs)
    paired = against(model, ours[both] == 1, theirs[both] == 1, config.level) if both.any() else None
    return ScoreRow(
        model=model,
        metric=f"{metric}_difference",
        questions="mmlu_pro",
        unit=f"share right, minus {config.models[0]}",
        estimate=paired.estimate if paired else None,
        low=paired.low if paired else None,
        high=paired.high if paired else None,
        n=paired.questions if paired else 0,
        about=f"paired questions (Newcombe); {paired.gained} gained, {paired.lost} lost" if paired else "",
        p=paired.p if paired else None,
        reason=None if paired else "no question could be read for both",
    )
