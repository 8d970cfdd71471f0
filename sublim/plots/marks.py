"""Figures as inline SVG: drawn by hand so that a report needs no plotting library, follows the page's colours and opens
anywhere. Every figure has a title for those who cannot see it; the report puts the table behind it beside it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH = 832
CHARACTER = 6.4
"""Width of an average character of the labels, in pixels."""
MARGIN = 30
"""To the right of a horizontal axis: room for half of its last tick's text."""


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
    """A point of a curve."""

    x: float
    value: float
    low: float | None
    high: float | None
    dots: Sequence[float]


class Cell(NamedTuple):
    """A cell of a matrix: a value, or nothing where it is missing, and what it says in words."""

    row: str
    column: str
    value: float | None
    title: str


class Scale(NamedTuple):
    """A linear axis from values to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def step_of(span: float, count: int = 5) -> float:
    """A round step (1, 2 or 5 times a power of ten) that cuts `span` into about `count`."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from at or below `low` to at or above `high`."""
    step = step_of(high - low or 1.0, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A tick's text."""
    return f"{value:g}".replace("-", "−")


def text(x: float, y: float, content: object, kind: str = "", anchor: str = "start") -> Markup:
    """An SVG text; `content` is escaped."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, kind, anchor, content
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """An SVG line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def dot(x: float, y: float, radius: float, kind: str, title: str = "") -> Markup:
    """An SVG circle with a tooltip."""
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="{}"><title>{}</title></circle>').format(
        x, y, radius, kind, title
    )


def svg(width: float, height: float, title: str, parts: Iterable[Markup]) -> Markup:
    """A whole figure; `title` says in words what it shows."""
    return Markup(
        '<svg viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" height="{:.0f}" role="img" aria-label="{}" '
        'xmlns="http://www.w3.org/2000/svg">{}</svg>'
    ).format(width, height, width, height, title, Markup("").join(parts))


def shorten(label: str, characters: int) -> str:
    """`label`, cut with an ellipsis."""
    return label if len(label) <= characters else label[: characters - 1].rstrip() + "…"


def horizontal(values: Sequence[float], left: float, right: float, top: float, bottom: float, unit: str):
    """A horizontal axis that holds `values` and zero: its scale, and the grid, ticks and name as SVG."""
    marks = ticks(min(*values, 0.0), max(*values, 0.0))
    scale = Scale(marks[0], marks[-1], left, right)
    parts = [line(scale(mark), top, scale(mark), bottom, "zero" if mark == 0 else "grid") for mark in marks]
    parts += [text(scale(mark), bottom + 16, number(mark), "tick", "middle") for mark in marks]
    parts.append(text((left + right) / 2, bottom + 34, unit, "axis", "middle"))
    return scale, parts


def dot_plot(bars: Sequence[Bar], *, unit: str, title: str, row: float = 26, labels: float = 0.45) -> Markup:
    """Estimates in rows, intervals as whiskers, single values as faint dots. `labels` is the labels' share of width."""
    longest = max(len(bar.label) for bar in bars)
    characters = min(longest, int(WIDTH * labels / CHARACTER))
    left, right, top = characters * CHARACTER + 18, WIDTH - MARGIN, 8
    bottom = top + row * len(bars)
    values = [value for bar in bars for value in (bar.value, bar.low, bar.high, *bar.dots) if value is not None]
    scale, parts = horizontal(values, left, right, top, bottom, unit)
    for place, bar in enumerate(bars):
        y = top + row * (place + 0.5)
        sign = "strong" if bar.strong else "plain"
        parts.append(
            Markup("<g><title>{}: {}</title>{}</g>").format(
                bar.label,
                number(round(bar.value, 4)),
                text(left - 10, y + 4, shorten(bar.label, characters), f"label {sign}", "end"),
            )
        )
        if bar.low is not None and bar.high is not None:
            parts.append(line(scale(bar.low), y, scale(bar.high), y, f"whisker {sign}"))
        parts += [dot(scale(value), y, 2.5, f"faint {sign}", number(round(value, 4))) for value in bar.dots]
        parts.append(dot(scale(bar.value), y, 5, f"dot {sign}", f"{bar.label}: {number(round(bar.value, 4))}"))
    return svg(WIDTH, bottom + 44, title, parts)


def stem_plot(bars: Sequence[Bar], *, unit: str, title: str, row: float = 17) -> Markup:
    """Many estimates as stems from zero, coloured by sign."""
    characters = min(max(len(bar.label) for bar in bars), int(WIDTH * 0.6 / CHARACTER))
    left, right, top = characters * CHARACTER + 18, WIDTH - MARGIN, 8
    bottom = top + row * len(bars)
    scale, parts = horizontal([bar.value for bar in bars], left, right, top, bottom, unit)
    for place, bar in enumerate(bars):
        y = top + row * (place + 0.5)
        sign = "up" if bar.value >= 0 else "down"
        parts.append(line(scale(0), y, scale(bar.value), y, f"stem {sign}"))
        parts.append(dot(scale(bar.value), y, 3.5, f"dot {sign}", f"{bar.label}: {number(round(bar.value, 4))}"))
        label = text(left - 10, y + 4, shorten(bar.label, characters), "label small", "end")
        parts.append(Markup("<g><title>{}</title>{}</g>").format(bar.label, label))
    return svg(WIDTH, bottom + 44, title, parts)


def pair_plot(pairs: Sequence[Pair], *, base: float | None, unit: str, title: str) -> Markup:
    """Each control and its student on one line, joined; the base as a dashed line."""
    row, left, right, top = 30, 96, WIDTH - MARGIN, 30
    bottom = top + row * len(pairs)
    marks = [value for pair in pairs for value in (pair.control, pair.student)] + ([] if base is None else [base])
    span = max(marks) - min(marks) or 1.0
    grid = ticks(min(marks) - 0.05 * span, max(marks) + 0.05 * span)
    scale = Scale(grid[0], grid[-1], left, right)
    parts = [line(scale(mark), top, scale(mark), bottom, "grid") for mark in grid]
    parts += [text(scale(mark), bottom + 16, number(mark), "tick", "middle") for mark in grid]
    parts.append(text((left + right) / 2, bottom + 34, unit, "axis", "middle"))
    if base is not None:
        parts.append(line(scale(base), top - 6, scale(base), bottom, "base"))
        parts.append(text(scale(base), top - 12, "base", "tick", "middle"))
    for place, pair in enumerate(pairs):
        y = top + row * (place + 0.5)
        parts.append(text(left - 14, y + 4, pair.label, "label", "end"))
        parts.append(line(scale(pair.control), y, scale(pair.student), y, "join"))
        parts.append(dot(scale(pair.control), y, 5, "hollow", f"control: {number(round(pair.control, 4))}"))
        parts.append(dot(scale(pair.student), y, 6, "dot strong", f"student: {number(round(pair.student, 4))}"))
    return svg(WIDTH, bottom + 44, title, parts)


def dose_plot(points: Sequence[Point], *, unit: str, title: str) -> Markup:
    """The effect against updates on a logarithmic axis; single pairs as faint lines."""
    left, right, top, bottom = 56, WIDTH - 24, 34, 304
    values = [v for point in points for v in (point.value, point.low, point.high, *point.dots) if v is not None]
    grid = ticks(min(*values, 0.0), max(*values, 0.0))
    up = Scale(grid[0], grid[-1], bottom, top)
    logs = [math.log(point.x) for point in points]
    pad = 0.08 * (logs[-1] - logs[0]) or 1.0
    across = Scale(logs[0] - pad, logs[-1] + pad, left, right)
    parts = [line(left, up(mark), right, up(mark), "zero" if mark == 0 else "grid") for mark in grid]
    parts += [text(left - 10, up(mark) + 4, number(mark), "tick", "end") for mark in grid]
    parts += [
        text(across(x), bottom + 18, number(point.x), "tick", "middle") for x, point in zip(logs, points, strict=True)
    ]
    parts.append(text((left + right) / 2, bottom + 38, "updates, on a logarithmic scale", "axis", "middle"))
    parts.append(text(0, 14, unit, "axis"))
    for dots in zip(*(point.dots for point in points), strict=True):
        parts.append(path([(across(x), up(value)) for x, value in zip(logs, dots, strict=True)], "faint-line"))
    parts.append(path([(across(x), up(point.value)) for x, point in zip(logs, points, strict=True)], "curve"))
    for x, point in zip(logs, points, strict=True):
        if point.low is not None and point.high is not None:
            parts.append(line(across(x), up(point.low), across(x), up(point.high), "whisker strong"))
        parts.append(
            dot(across(x), up(point.value), 5, "dot strong", f"{number(point.x)}: {number(round(point.value, 4))}")
        )
    return svg(WIDTH, bottom + 48, title, parts)


def matrix_plot(names: Sequence[str], cells: Sequence[Cell], *, unit: str, title: str) -> Markup:
    """A square matrix of values, coloured by sign and size; missing ones are left open."""
    left = max(map(len, names)) * CHARACTER + 24
    side = min(120.0, (WIDTH - left) / len(names))
    height, top = min(side, 44.0), 26.0
    largest = max((abs(cell.value) for cell in cells if cell.value is not None), default=0.0) or 1.0
    parts = [text(left + side * (i + 0.5), top - 8, name, "tick", "middle") for i, name in enumerate(names)]
    parts += [text(left - 10, top + height * (i + 0.5) + 4, name, "label", "end") for i, name in enumerate(names)]
    for cell in cells:
        x, y = left + side * names.index(cell.column), top + height * names.index(cell.row)
        sign = "missing" if cell.value is None else "up" if cell.value >= 0 else "down"
        shade = 0 if cell.value is None else 0.12 + 0.78 * abs(cell.value) / largest
        shown = "–" if cell.value is None else f"{cell.value:+.2f}".replace("-", "−")
        parts.append(
            Markup(
                '<g><title>{}</title><rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="cell {}" '
                'fill-opacity="{:.2f}"/>{}</g>'
            ).format(
                cell.title, x + 1, y + 1, side - 2, height - 2, sign, shade,
                text(x + side / 2, y + height / 2 + 4, shown, "on-dark" if shade > 0.55 else "", "middle"),
            )
        )  # fmt: skip
    bottom = top + height * len(names)
    parts.append(text(left, bottom + 20, unit, "axis"))
    return svg(WIDTH, bottom + 30, title, parts)


def path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """An SVG line through all points."""
    steps = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<path d="M{}" class="{}"/>').format(steps, escape(kind))
