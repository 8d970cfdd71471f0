"""What all figures of the pipeline's report have: a caption, numbers in a table, and the columns of an effect."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from sublim.evals.effect_config import Effect
from sublim.plots.charts import Point
from sublim.report.shown import Change, DosePoint
from sublim.report.tested import p_told
from sublim.report.wording import bounds, interval, signed

UNIT = "student − control, nats"
EFFECT_COLUMNS = ["effect", "these questions", "questions too", "p, after Holm"]
EFFECT_NUMBERS = ("estimate", "low", "high", "low_questions", "high_questions", "units", "questions", "p", "p_holm")


class Figure(NamedTuple):
    """A figure with its caption and its numbers."""

    name: str
    drawing: Markup
    caption: str
    columns: list[str]
    """Columns of the table below the figure."""
    rows: list[list[str]]
    values: list[dict[str, Any]]
    """The same numbers unrounded, for a CSV file: one row for each mark, None for a missing number."""


def with_intervals(effect: Effect | None, missing: str | None = None) -> list[str]:
    """An effect, both its intervals and its p as text, or the reason why it is `missing`."""
    first = signed(effect.estimate) if effect else str(missing)
    both = (interval(effect, "these_questions", "margin"), interval(effect, "questions_too", "margin"))
    return [first, *both, p_told(effect)]


def as_numbers(
    found: Effect | Change | None, prefix: str = "", names: Sequence[str] = EFFECT_NUMBERS
) -> dict[str, Any]:
    """An effect and both its intervals as numbers, or others of its fields."""
    return {f"{prefix}{name}": None if found is None else getattr(found, name) for name in names}


def known_effects(dose: list[DosePoint]) -> list[tuple[int, Effect]]:
    """The margin's effect at every checkpoint that has one, by updates."""
    found = [(at.updates, effect) for at in dose if (effect := at.metrics["margin"].effect)]
    return sorted(found, key=lambda pair: pair[0])


def points_of(known: list[tuple[int, Effect]]) -> list[Point]:
    """The same as points of a curve, with the interval on these questions."""
    return [Point(at, effect.estimate, *bounds(effect, "these_questions"), effect.per_pair) for at, effect in known]
