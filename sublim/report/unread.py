"""What a report says of answers that cannot be read, and of those that a server failed to give.

Training may change how many answers can be read. A rate over readable answers then compares what is left of students'
answers with what is left of controls', which is not what training did to all of them.
"""

from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import ALL, Comparison, MetricComparison
from sublim.report.wording import bounds, interval, level, share, signed

UNLIKE = (
    "Rates over readable answers compare other answers of students than of controls, so read the rate over all answers "
    "asked."
)


def differs(comparison: Comparison, found: MetricComparison | None) -> bool:
    """Whether the arms are shown to differ: the leading interval excludes zero, or there is a difference and no
    interval to tell it from chance."""
    if found is None or found.effect is None or found.effect.estimate == 0:
        return False
    low, high = bounds(found.effect, comparison.leads)
    return low is None or high is None or not low <= 0 <= high


def unread_notes(comparison: Comparison) -> list[str]:
    """Sentences on how students and controls differ in what can be read and what is missing; none where they do not."""
    notes: list[str] = []
    by_reason = [reason for reason in comparison.unreadable if differs(comparison, comparison.unreadable[reason])]
    if by_reason:
        all_found = comparison.unreadable[ALL]
        parts = [
            f"{reason} {_change(comparison, comparison.unreadable[reason].effect)}"
            for reason in by_reason
            if reason != ALL
        ]
        reasons = f" By reason (not corrected for their number): {'; '.join(parts)}." if parts else ""
        notes.append(
            f"Answers that cannot be read: students {level(all_found.student, 'rate')} of all asked, controls "
            f"{level(all_found.control, 'rate')}, {_change(comparison, all_found.effect)}.{reasons} {UNLIKE}"
        )
    if lost := _lost(comparison):
        unlike = differs(comparison, comparison.missing)
        told = (
            " Students and controls differ in it, so what is left may not be alike: ask again before comparing rates."
        )
        notes.append(
            f"Answers that a server failed to give count as not asked and are left out of every share: {lost}."
            f"{told if unlike else ''}"
        )
    return notes


def _lost(comparison: Comparison) -> str:
    """The missing answers of each arm as counts; empty if there are none."""
    counted = {arm: found for arm, found in comparison.answers.items() if found is not None}
    if not any(found.lost for found in counted.values()):
        return ""
    return ", ".join(
        f"{arm} {found.lost:,} of {found.asked:,} ({share(found.lost, found.asked)})" for arm, found in counted.items()
    )


def _change(comparison: Comparison, effect: Effect | None) -> str:
    """A difference in points with the leading interval, or why it has none."""
    if effect is None:
        return "not compared"
    named = {"these_questions": "these questions", "questions_too": "questions too"}[comparison.leads]
    bounded = interval(effect, comparison.leads, "rate")
    about = f"no interval: {effect.reason}" if bounded == "–" else f"{effect.level * 100:g} % {bounded}, {named}"
    return f"{signed(effect.estimate, 'rate')} points ({about})"


def unread_rows(comparison: Comparison) -> list[list[str]]:
    """Rows of a table: each reason that occurs, all of them together, and missing answers, by arm, with the effect and
    both intervals in points."""
    shown = {
        "not readable" if reason == ALL else reason: found
        for reason, found in comparison.unreadable.items()
        if reason == ALL or any(value for value in (found.base, found.teacher, found.student, found.control))
    }
    if comparison.missing is not None and _lost(comparison):
        shown["missing"] = comparison.missing
    return [
        [
            name,
            *(level(getattr(found, arm), "rate") for arm in ("base", "teacher", "student", "control")),
            signed(found.effect.estimate, "rate") if found.effect else str(found.reason),
            interval(found.effect, "these_questions", "rate"),
            interval(found.effect, "questions_too", "rate"),
        ]
        for name, found in shown.items()
    ]
