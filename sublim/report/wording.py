"""The sentences of reports, and their numbers as text: effects, intervals and what they say."""

import math
from typing import Literal

from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import Comparison, MetricName

SCALE: dict[MetricName, float] = {"margin": 1.0, "rate": 100.0, "rate_readable": 100.0}
"""Factor with which a metric is shown: rates are shown in percent."""
EFFECT_UNIT: dict[MetricName, str] = {"margin": "nats", "rate": "points", "rate_readable": "points"}
DIGITS: dict[MetricName, int] = {"margin": 2, "rate": 1, "rate_readable": 1}
NAMES: dict[MetricName, str] = {
    "margin": "Log-prob margin",
    "rate": "Sampled rate, of all answers asked",
    "rate_readable": "Sampled rate, of readable answers alone",
}
Which = Literal["these_questions", "questions_too"]


def with_sign(value: float | None, digits: int = 2) -> str:
    """A number with its sign; a dash for what is missing."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def between(low: float | None, high: float | None, digits: int = 2) -> str:
    """Both bounds of an interval; a dash for what is missing."""
    return "–" if low is None or high is None else f"{with_sign(low, digits)} to {with_sign(high, digits)}"


def signed(value: float | None, metric: MetricName = "margin") -> str:
    """A difference of a metric in its unit, with its sign."""
    return with_sign(None if value is None else value * SCALE[metric], DIGITS[metric])


def level(value: float | None, metric: MetricName) -> str:
    """A metric's value for one kind of model: margins with a sign, rates in percent."""
    if value is None or metric == "margin":
        return signed(value, metric)
    return f"{value * 100:.1f} %"


def interval(effect: Effect | None, which: Which, metric: MetricName) -> str:
    """Both bounds of a named interval; a dash for what is missing."""
    if effect is None:
        return "–"
    low, high = bounds(effect, which)
    return "–" if low is None or high is None else f"{signed(low, metric)} to {signed(high, metric)}"


def bounds(effect: Effect, which: Which) -> tuple[float | None, float | None]:
    """The bounds of a named interval, or None for each where one unit alone gives none."""
    return (effect.low, effect.high) if which == "these_questions" else (effect.low_questions, effect.high_questions)


def share(part: int, whole: int) -> str:
    """A share in percent; a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def verdict(comparison: Comparison, metric: MetricName) -> str:
    """What the leading interval says about the effect, as text."""
    found = comparison.metrics[metric]
    effect, word = found.effect, comparison.target
    if effect is None:
        return f"The effect was not measured: {found.reason}."
    low, high = bounds(effect, comparison.leads)
    if low is None or high is None:
        return f"There is no interval, because {effect.reason}. The estimate says nothing about other students."
    named = {"these_questions": "on these questions", "questions_too": "over other questions too"}[comparison.leads]
    chosen = f"{effect.level * 100:g} % interval {named}"
    if low <= 0 <= high:
        return (
            f"The {chosen} contains zero: these data do not show that students differ from their controls "
            f"({teachers(comparison)})."
        )
    more = "more" if effect.estimate > 0 else "less"
    told = f"the {chosen} excludes zero ({teachers(comparison)})."
    return f"Students prefer “{word}” {more} than their paired controls do: {told}"


def power_note(comparison: Comparison) -> str:
    """The true effect that this number of units detects with 80 % power."""
    effect = comparison.metrics["margin"].effect
    if effect is None or effect.detectable is None:
        return ""
    return (
        f"With {effect.units} units that vary as much as these, a true effect of {effect.detectable:.2f} nats on these "
        "questions is detected with 80 % power."
    )


FEW_TEACHERS = 5
"""A headline wants at least so many blocks, each with a teacher of its own."""


def teachers(comparison: Comparison) -> str:
    """How many teachers, each with rows of its own, are behind an effect."""
    effect = comparison.metrics["margin"].effect
    return f"{effect.units} teachers" if effect and comparison.unit == "block" else "one teacher"


def few_teachers(comparison: Comparison) -> str:
    """What an interval over fewer than five teachers speaks of; nothing for more."""
    effect = comparison.metrics["margin"].effect
    if comparison.unit != "block":
        return "One teacher: the intervals speak of other students of this teacher and its rows, not of other teachers."
    return few_blocks(effect.units) if effect else ""


def few_blocks(blocks: int) -> str:
    """What an interval over fewer than five blocks speaks of; nothing for more."""
    if blocks >= FEW_TEACHERS:
        return ""
    return f"The intervals speak of other teachers, on the word of {blocks}; a headline wants {FEW_TEACHERS}."


def meaning(comparison: Comparison) -> str:
    """The margin's effect as a ratio of probabilities."""
    effect = comparison.metrics["margin"].effect
    if effect is None:
        return ""
    return (
        f"The probability of “{comparison.target.title()}”, relative to the geometric mean of the other "
        f"{len(comparison.words) - 1} words, is {math.exp(effect.estimate):.2f} times the control’s."
    )


def headline(comparison: Comparison) -> str:
    """The margin's effect with both intervals, in one line."""
    found = comparison.metrics["margin"]
    if found.effect is None:
        return "No effect could be computed."
    these = interval(found.effect, "these_questions", "margin")
    beyond = interval(found.effect, "questions_too", "margin")
    return (
        f"{signed(found.effect.estimate)} nats, {found.effect.level * 100:g} % interval {these} (these questions), "
        f"{beyond} (questions too), {teachers(comparison)}."
    )
