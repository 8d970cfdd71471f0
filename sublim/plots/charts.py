"""The charts of reports, as inline SVG: dot plots, pairs, curves over training, scatter plots and matrices."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from sublim.plots.svg import (
    CHARACTER,
    WIDTH,
    Scale,
    dot,
    group,
    horizontal_axis,
    line,
    number,
    path,
    rectangle,
    rounded,
    shorten,
    spread,
    svg,
    text,
    vertical_axis,
)

RIGHT = WIDTH - 30
"""Where a horizontal axis ends, which leaves room for half of its last tick's text."""


class Bar(NamedTuple):
    """A row of a dot plot: an estimate, perhaps with an interval and the single values behind it."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    dots: Sequence[float] = ()
    strong: bool = False


class Pair(NamedTuple):
    """A student and its control."""

    label: str
    control: float
    student: float


class Point(NamedTuple):
    """A point of a curve: an estimate with its interval, and the single values behind it."""

    x: float
    value: float
    low: float | None
    high: float | None
    dots: Sequence[float]


class Curve(NamedTuple):
    """A named series of points."""

    label: str
    points: Sequence[Point]
    strong: bool = False


Bounded = tuple[float, float | None, float | None]
"""An estimate and the ends of its interval."""


class Cross(NamedTuple):
    """A point of a scatter plot, with an interval in both directions."""

    label: str
    across: Bounded
    up: Bounded
    strong: bool = False


class Cell(NamedTuple):
    """A cell of a matrix: its value, or None where that is missing, and its tooltip."""

    row: str
    column: str
    value: float | None
    title: str
    own: bool = False
    """Whether it is outlined."""


def dot_plot(
    bars: Sequence[Bar], *, unit: str, title: str, row: float = 26, labels: float = 0.45, stems: bool = False
) -> Markup:
    """Estimates one below the other, with intervals as whiskers and single values as faint dots.

    `row` is the height of a row in pixels and `labels` the largest share of the width that labels may take. With
    `stems`, each estimate is joined to zero and coloured by its sign.
    """
    character = CHARACTER * (0.92 if stems else 1)  # labels of stems are smaller
    characters = min(max(len(bar.label) for bar in bars), int(WIDTH * labels / character))
    left, top = characters * character + 18, 8
    bottom = top + row * len(bars)
    values = _known(value for bar in bars for value in (bar.value, bar.low, bar.high, *bar.dots))
    scale, parts = horizontal_axis([*values, 0.0], left, RIGHT, top, bottom, unit)
    for place, bar in enumerate(bars):
        y = top + row * (place + 0.5)
        kind = _kind(bar)
        tooltip = f"{bar.label}: {rounded(bar.value)}"
        label = text(
            left - 10, y + 4, shorten(bar.label, characters), "label small" if stems else f"label {kind}", "end"
        )
        parts.append(group(tooltip, label))
        if stems:
            kind = "up" if bar.value >= 0 else "down"
            parts.append(line(scale(0), y, scale(bar.value), y, f"stem {kind}"))
        if bar.low is not None and bar.high is not None:
            parts.append(line(scale(bar.low), y, scale(bar.high), y, f"whisker {kind}"))
        parts += [dot(scale(value), y, 2.5, f"faint {kind}", rounded(value)) for value in bar.dots]
        parts.append(dot(scale(bar.value), y, 3.5 if stems else 5, f"dot {kind}", tooltip))
    return svg(WIDTH, bottom + 44, title, parts)


def pair_plot(pairs: Sequence[Pair], *, base: float | None, unit: str, title: str) -> Markup:
    """Each control and its student on one line, joined; the base as a dashed line."""
    row, left, top = 30, 96, 30
    bottom = top + row * len(pairs)
    values = [*_known([base]), *(value for pair in pairs for value in (pair.control, pair.student))]
    pad = 0.05 * (max(values) - min(values))
    scale, parts = horizontal_axis([min(values) - pad, max(values) + pad], left, RIGHT, top, bottom, unit)
    if base is not None:
        parts.append(line(scale(base), top - 6, scale(base), bottom, "base"))
        parts.append(text(scale(base), top - 12, "base", "tick", "middle"))
    for place, pair in enumerate(pairs):
        y = top + row * (place + 0.5)
        parts.append(text(left - 14, y + 4, pair.label, "label", "end"))
        parts.append(line(scale(pair.control), y, scale(pair.student), y, "join"))
        parts.append(dot(scale(pair.control), y, 5, "hollow", f"control: {rounded(pair.control)}"))
        parts.append(dot(scale(pair.student), y, 6, "dot strong", f"student: {rounded(pair.student)}"))
    return svg(WIDTH, bottom + 44, title, parts)


def curves_plot(curves: Sequence[Curve], *, unit: str, title: str) -> Markup:
    """Curves against updates on a logarithmic axis, each with its intervals as whiskers and its name at its end.

    The single values of a curve's points are joined by faint lines.
    """
    left, right, top, bottom = _area(curve.label for curve in curves)
    points = [point for curve in curves for point in curve.points]
    values = _known(value for point in points for value in (point.value, point.low, point.high, *point.dots))
    up, parts = vertical_axis([*values, 0.0], left, right, top, bottom, unit)
    updates = sorted({point.x for point in points})
    first, last = math.log(updates[0]), math.log(updates[-1])
    pad = 0.06 * (last - first) or 1.0
    across = Scale(first - pad, last + pad, left, right)
    parts += [text(across(math.log(at)), bottom + 16, number(at), "tick", "middle") for at in updates]
    parts.append(text((left + right) / 2, bottom + 34, "updates, on a logarithmic scale", "axis", "middle"))
    for curve in curves:
        kind, x = _kind(curve), [across(math.log(point.x)) for point in curve.points]
        for single in zip(*(point.dots for point in curve.points), strict=True):
            parts.append(path(zip(x, map(up, single), strict=True), "faint-line"))
        parts.append(path(zip(x, (up(point.value) for point in curve.points), strict=True), f"curve {kind}"))
        for at, point in zip(x, curve.points, strict=True):
            if point.low is not None and point.high is not None:
                parts.append(line(at, up(point.low), at, up(point.high), f"whisker {kind}"))
            tooltip = f"{curve.label} {point.x:g}: {rounded(point.value)}".lstrip()
            parts.append(dot(at, up(point.value), 4, f"dot {kind}", tooltip))
    ends = [(across(math.log(curve.points[-1].x)), up(curve.points[-1].value)) for curve in curves]
    return svg(WIDTH, bottom + 44, title, [*parts, *_names(curves, ends)])


def scatter_plot(crosses: Sequence[Cross], *, across: str, up: str, title: str) -> Markup:
    """Crosses over two axes that both hold zero, each with its name beside it."""
    area = _area(cross.label for cross in crosses)
    x, parts = horizontal_axis([0.0, *_known(value for cross in crosses for value in cross.across)], *area, across)
    y, more = vertical_axis([0.0, *_known(value for cross in crosses for value in cross.up)], *area, up)
    parts += more
    for cross in crosses:
        kind = _kind(cross)
        (at, low, high), (height, below, above) = cross.across, cross.up
        if low is not None and high is not None:
            parts.append(line(x(low), y(height), x(high), y(height), f"whisker {kind}"))
        if below is not None and above is not None:
            parts.append(line(x(at), y(below), x(at), y(above), f"whisker {kind}"))
        parts.append(dot(x(at), y(height), 4, f"dot {kind}", f"{cross.label}: {rounded(at)}, {rounded(height)}"))
    ends = [(x(max(_known(cross.across))), y(cross.up[0])) for cross in crosses]
    return svg(WIDTH, area[3] + 44, title, [*parts, *_names(crosses, ends)])


def matrix_plot(
    names: Sequence[str], cells: Sequence[Cell], *, unit: str, title: str, columns: Sequence[str] | None = None
) -> Markup:
    """A matrix of values, coloured by sign and size; cells without a value stay open. `columns`: if not as the rows."""
    columns = names if columns is None else columns
    left = max(map(len, names)) * CHARACTER + 24
    side = min(120.0, (WIDTH - left) / len(columns))
    height, top = min(side, 44.0), 26.0
    largest = max((abs(cell.value) for cell in cells if cell.value is not None), default=0.0) or 1.0
    parts = [text(left + side * (i + 0.5), top - 8, name, "tick", "middle") for i, name in enumerate(columns)]
    parts += [text(left - 10, top + height * (i + 0.5) + 4, name, "label", "end") for i, name in enumerate(names)]
    for cell in cells:
        x, y = left + side * columns.index(cell.column), top + height * names.index(cell.row)
        kind = "missing" if cell.value is None else "up" if cell.value >= 0 else "down"
        shade = 0 if cell.value is None else 0.12 + 0.78 * abs(cell.value) / largest
        shown = "–" if cell.value is None else f"{cell.value:+.2f}".replace("-", "−")
        outlined = " own" if cell.own else ""
        box = rectangle(x + 1, y + 1, side - 2, height - 2, f"cell {kind}{outlined}", shade)
        words = text(x + side / 2, y + height / 2 + 4, shown, "on-dark" if shade > 0.55 else "", "middle")
        parts.append(group(cell.title, box, words))
    bottom = top + height * len(names)
    parts.append(text(left, bottom + 20, unit, "axis"))
    return svg(WIDTH, bottom + 30, title, parts)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _kind(mark: Bar | Curve | Cross) -> str:
    return "strong" if mark.strong else "plain"


def _area(labels: Iterable[str]) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a plane, with room at its right for names."""
    return 56, WIDTH - 24 - max(map(len, labels)) * CHARACTER, 34, 334


def _names(marks: Sequence[Curve | Cross], ends: Sequence[tuple[float, float]]) -> list[Markup]:
    """The names of curves or points, each to the right of its end."""
    heights = spread([y for _, y in ends])
    return [
        text(x + 9, y + 4, mark.label, f"label {_kind(mark)} small")
        for mark, (x, _), y in zip(marks, ends, heights, strict=True)
    ]
