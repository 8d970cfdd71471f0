"""Several curves in one figure, as inline SVG: the effect of each arm over its checkpoints."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from sublim.plots.marks import CHARACTER, WIDTH, Point, Scale, dot, line, number, path, svg, text, ticks

APART = 13.0
"""Fewest pixels between two labels."""


class Curve(NamedTuple):
    """A named series of points over updates."""

    label: str
    points: Sequence[Point]
    strong: bool = False


def curves_plot(curves: Sequence[Curve], *, unit: str, title: str) -> Markup:
    """Curves against updates on a logarithmic axis, each with its whiskers and its name at its end."""
    left, top, bottom = 56, 34, 334
    right = WIDTH - 24 - max(len(curve.label) for curve in curves) * CHARACTER
    points = [point for curve in curves for point in curve.points]
    values = [value for point in points for value in (point.value, point.low, point.high) if value is not None]
    grid = ticks(min(*values, 0.0), max(*values, 0.0))
    up = Scale(grid[0], grid[-1], bottom, top)
    updates = sorted({point.x for point in points})
    pad = 0.05 * (math.log(updates[-1]) - math.log(updates[0])) or 1.0
    across = Scale(math.log(updates[0]) - pad, math.log(updates[-1]) + pad, left, right)
    parts = [line(left, up(mark), right, up(mark), "zero" if mark == 0 else "grid") for mark in grid]
    parts += [text(left - 10, up(mark) + 4, number(mark), "tick", "end") for mark in grid]
    parts += [text(across(math.log(at)), bottom + 18, number(at), "tick", "middle") for at in updates]
    parts.append(text((left + right) / 2, bottom + 38, "updates, on a logarithmic scale", "axis", "middle"))
    parts.append(text(0, 14, unit, "axis"))
    for curve in curves:
        sign = "strong" if curve.strong else "plain"
        along = [(across(math.log(point.x)), up(point.value)) for point in curve.points]
        parts.append(path(along, "curve" if curve.strong else "curve plain"))
        for (x, y), point in zip(along, curve.points, strict=True):
            if point.low is not None and point.high is not None:
                parts.append(line(x, up(point.low), x, up(point.high), f"whisker {sign}"))
            parts.append(dot(x, y, 4, f"dot {sign}", f"{curve.label}, {point.x:g}: {number(round(point.value, 4))}"))
    ends = [(across(math.log(curve.points[-1].x)), up(curve.points[-1].value)) for curve in curves]
    heights = spread([y for _, y in ends])
    for curve, (x, _), y in zip(curves, ends, heights, strict=True):
        parts.append(text(x + 10, y + 4, curve.label, f"label {'strong' if curve.strong else 'plain'} small"))
    return svg(WIDTH, bottom + 48, title, parts)


def spread(heights: Sequence[float]) -> list[float]:
    """The heights pushed downwards where two would overlap, in the order given."""
    placed = list(heights)
    last = -math.inf
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        last = placed[i] = max(placed[i], last + APART)
    return placed
