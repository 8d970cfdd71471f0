"""Two measured quantities against each other, each with its interval, as inline SVG."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from sublim.plots.curves import spread
from sublim.plots.marks import CHARACTER, WIDTH, Scale, dot, line, number, svg, text, ticks

Bounded = tuple[float, float | None, float | None]
"""An estimate and the ends of its interval."""


class Cross(NamedTuple):
    """A point with an interval either way."""

    label: str
    across: Bounded
    up: Bounded
    strong: bool = False


def scatter_plot(crosses: Sequence[Cross], *, across: str, up: str, title: str) -> Markup:
    """Crosses over two axes that both hold zero, each with its name beside it."""
    left, top, bottom = 56, 34, 334
    right = WIDTH - 24 - max(len(cross.label) for cross in crosses) * CHARACTER
    columns, rows = _grid([cross.across for cross in crosses]), _grid([cross.up for cross in crosses])
    x, y = Scale(columns[0], columns[-1], left, right), Scale(rows[0], rows[-1], bottom, top)
    parts = [line(left, y(mark), right, y(mark), "zero" if mark == 0 else "grid") for mark in rows]
    parts += [line(x(mark), top, x(mark), bottom, "zero" if mark == 0 else "grid") for mark in columns]
    parts += [text(left - 10, y(mark) + 4, number(mark), "tick", "end") for mark in rows]
    parts += [text(x(mark), bottom + 18, number(mark), "tick", "middle") for mark in columns]
    parts += [text((left + right) / 2, bottom + 38, across, "axis", "middle"), text(0, 14, up, "axis")]
    for cross in crosses:
        sign = "strong" if cross.strong else "plain"
        (at, low, high), (height, below, above) = cross.across, cross.up
        if low is not None and high is not None:
            parts.append(line(x(low), y(height), x(high), y(height), f"whisker {sign}"))
        if below is not None and above is not None:
            parts.append(line(x(at), y(below), x(at), y(above), f"whisker {sign}"))
        told = f"{cross.label}: {number(round(at, 4))}, {number(round(height, 4))}"
        parts.append(dot(x(at), y(height), 4, f"dot {sign}", told))
    heights = spread([y(cross.up[0]) for cross in crosses])
    for cross, height in zip(crosses, heights, strict=True):
        end = max(value for value in cross.across if value is not None)
        parts.append(text(x(end) + 8, height + 4, cross.label, f"label {'strong' if cross.strong else 'plain'} small"))
    return svg(WIDTH, bottom + 48, title, parts)


def _grid(values: Sequence[Bounded]) -> list[float]:
    found = [value for bounded in values for value in bounded if value is not None]
    return ticks(min(*found, 0.0), max(*found, 0.0))
