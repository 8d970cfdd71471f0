"""A timeline as SVG: one lane for each worker, one bar for each run, one panel for each fan-out."""

from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, LEFT, LANE, HEAD = 960.0, 90.0, 34.0, 46.0
COLOURS = ("#3b6ea8", "#c0643c", "#4f8a5b", "#8a5fa8", "#a8893b", "#4c8f9c")


class Bar(NamedTuple):
    """One run of a worker, in seconds since the panel's beginning."""

    worker: str
    name: str
    start: float
    end: float


def draw(path: Path, panels: dict[str, list[Bar]]) -> None:
    """Writes the panels below one another, on one scale."""
    longest = max((bar.end for bars in panels.values() for bar in bars), default=1.0)
    scale = (WIDTH - LEFT - 20) / longest
    parts: list[str] = []
    top = 10.0
    for title, bars in panels.items():
        lanes = sorted({bar.worker for bar in bars})
        parts.append(f'<text x="{LEFT}" y="{top + 16}" class="title">{escape(title)}</text>')
        for place, worker in enumerate(lanes):
            y = top + 28 + place * LANE
            mine = [bar for bar in bars if bar.worker == worker]
            parts.append(f'<text x="{LEFT - 8}" y="{y + 17}" text-anchor="end">{escape(worker)}</text>')
            for number, bar in enumerate(mine):
                x, width = LEFT + bar.start * scale, max(1.0, (bar.end - bar.start) * scale)
                colour = COLOURS[number % len(COLOURS)]
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LANE - 10}" rx="3" fill="{colour}">'
                    f"<title>{escape(bar.name)}: {bar.start:.1f} to {bar.end:.1f} s</title></rect>"
                )
        top += HEAD + len(lanes) * LANE
    for second in _ticks(longest):
        x = LEFT + second * scale
        parts.append(f'<line x1="{x:.1f}" y1="30" x2="{x:.1f}" y2="{top}" class="tick"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + 14}" text-anchor="middle">{second:g} s</text>')
    style = (
        "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600}.tick{stroke:#ddd;stroke-dasharray:2 3}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {top + 24:g}"><style>{style}</style>'
    path.write_text(f'{head}<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>', encoding="utf-8")


def _ticks(longest: float) -> list[float]:
    """Five to ten round numbers from 0 on."""
    step = next(size * 10**power for power in range(-1, 6) for size in (1, 2, 5) if longest / (size * 10**power) <= 10)
    return [step * number for number in range(int(longest / step) + 1)]
