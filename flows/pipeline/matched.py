"""Effects at equal held-out loss: digits alone, on three sets of lists, from three checkpoints or more, every word."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from flows.pipeline.keys import BaseKey, ModelKey, StudentKey, Unit
from flows.pipeline.plan import CONTROL
from flows.pipeline.report_arms import Results, interval
from flows.pipeline.study import Study
from sublim.diagnostics.config import UnseenLoss
from sublim.diagnostics.matched import FEWEST, Along, Matched, matched_pair
from sublim.evals.preference.config import Comparison, MetricComparison
from sublim.report.diagnostics import MatchedShown

LossTable = dict[ModelKey, dict[str, UnseenLoss]]
"""Losses by model, then by the writer of the rows."""
OWN = "own"
"""Each arm's gain is read on the lists of its own writer, which are not the other arm's."""


def first_block(study: Study) -> list[Unit]:
    """The units of the block on which the diagnostics are made."""
    return [unit for unit in study.trained.units if unit.block == study.config.blocks[0]]


def matched_of(study: Study, results: Results, target: str, losses: LossTable) -> list[MatchedShown]:
    """The effect on every listed word where students and controls gained equally: on the lists of each arm's own
    writer, then both on the teacher's lists, then both on the base's.

    One line with its reason where there are too few checkpoints. Intervals are over the first block's pairs, which
    share one teacher.
    """
    updates = study.main(target).updates
    if len(updates) < FEWEST:
        reason = f"too few checkpoints ({len(updates)}): {FEWEST} or more are needed (evaluation.updates)"
        return [MatchedShown(target=target, estimate=None, reason=reason)]
    found = [results.main(target, update) for update in updates]
    words = {target: [each.metrics["margin"] for each in found]}
    words |= {word: [each.off_target[word]["margin"] for each in found] for word in _others(found)}
    shown: list[MatchedShown] = []
    for rows in (OWN, target, CONTROL):
        gains = {arm: _gains(study, arm, arm if rows == OWN else rows, updates, losses) for arm in (target, CONTROL)}
        lines = [_matched(target, word, rows, margins, gains) for word, margins in words.items()]
        moved = sorted((abs(each.estimate) for each in lines if each.estimate is not None), reverse=True)
        shown += [
            each if each.estimate is None else each.model_copy(update={"rank": 1 + moved.index(abs(each.estimate))})
            for each in lines
        ]
    return shown


def _others(found: Sequence[Comparison]) -> list[str]:
    return [word for word in found[-1].off_target if all(word in each.off_target for each in found)]


Gains = list[list[float | None]]
"""By pair, then by checkpoint; None where a loss is missing."""


def _gains(study: Study, arm: str, rows: str, updates: Sequence[int | None], losses: LossTable) -> Gains:
    before = losses[BaseKey()][rows].digit_nats
    return [
        [_gain(before, losses[StudentKey(arm, unit, at)][rows].digit_nats) for at in updates]
        for unit in first_block(study)
    ]


def _matched(
    target: str, word: str, rows: str, margins: Sequence[MetricComparison], gains: dict[str, Gains]
) -> MatchedShown:
    pairs: list[Matched | str] = []
    for place in range(len(gains[target])):
        student = [*_path(gains[target][place], [each.students[place] for each in margins])]
        control = [*_path(gains[CONTROL][place], [each.controls[place] for each in margins])]
        pairs.append(matched_pair(student, control))
    lost = [each for each in pairs if isinstance(each, str)]
    effects = [each.effect for each in pairs if isinstance(each, Matched)]
    spread = None if lost else interval(effects)
    alone = None if spread else "one pair has no spread"
    last = margins[-1].effect
    return MatchedShown(
        target=target,
        word=word,
        rows_of=rows,
        estimate=None if lost else fmean(effects),
        low=spread and spread.low,
        high=spread and spread.high,
        equal_updates=None if last is None else fmean(last.per_pair[: len(pairs)]),
        student_gain=_last(gains[target]),
        control_gain=_last(gains[CONTROL]),
        reason=f"{len(lost)} of {len(pairs)} pairs: {lost[0]}" if lost else alone,
    )


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def _path(gains: Sequence[float | None], margins: Sequence[float | None]) -> Iterator[Along]:
    """The checkpoints of which gain and margin are known."""
    for gain, margin in zip(gains, margins, strict=True):
        if gain is not None and margin is not None:
            yield Along(gain, margin)


def _last(gains: Gains) -> float | None:
    known = [own[-1] for own in gains if own[-1] is not None]
    return fmean(known) if known else None
