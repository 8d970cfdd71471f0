"""Figures of a sweep: every effect with its interval, and its cost in MMLU-Pro."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sublim.evals.mmlu_pro.config import LETTER_METRICS
from sublim.plots.svg_files import drawing

Row = dict[str, Any]


def label_of(row: Row) -> str:
    """A label that tells a row from the others."""
    parts = [row["target"], row["arm"] if row["arm"] != "teacher" else "", row["of"]]
    parts += [f"{name} {value}" for name, value in row["grid"].items()]
    parts += [f"{row['updates']} updates" if row["updates"] else ""]
    return " ".join(str(part) for part in parts if part)


def draw_effects(path: Path, rows: Sequence[Row]) -> None:
    """Effects of the primary metric, one row each, with single pairs as ticks.

    Thick whiskers are intervals on these questions; thin ones hold for other questions too. Without effects there is no
    file.
    """
    shown = [row for row in rows if row["estimate"] is not None]
    if not shown:
        return
    with drawing(path, 7.5, 0.9 + 0.32 * len(rows)) as figure:
        axes: Any = figure.subplots()
        for place, row in enumerate(rows):
            if row["estimate"] is None:
                axes.text(0, place, " not measured", va="center", color="0.5", fontsize=8)
                continue
            for low, high, width in (("low_questions", "high_questions", 0.8), ("low", "high", 2.2)):
                if row[low] is not None:
                    axes.plot([row[low], row[high]], [place, place], color="C0", lw=width)
            axes.plot(row["pairs_of"], [place] * len(row["pairs_of"]), "|", color="0.6", ms=6)
            axes.plot(row["estimate"], place, "o", color="C0", ms=5)
        axes.axvline(0, color="0.6", lw=0.8)
        axes.set_yticks(range(len(rows)), [label_of(row) for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(f"student − control, {shown[0]['unit']}")


def draw_cost(path: Path, rows: Sequence[Row], primary: str) -> None:
    """The effect against the change in MMLU-Pro, both student minus control, one point for each row that has both."""
    effects = {_key(row): row for row in rows if row["metric"] == primary and row["estimate"] is not None}
    measured = {row["metric"] for row in rows if row["estimate"] is not None}
    metrics = [name for name in LETTER_METRICS if name in measured]
    if not metrics:
        return
    with drawing(path, 4.4 * len(metrics) + 0.5, 3.4) as figure:
        panels: Any = figure.subplots(1, len(metrics), squeeze=False, sharey=True)
        for axes, metric in zip(panels[0], metrics, strict=True):
            for row in rows:
                effect = effects.get(_key(row))
                if row["metric"] != metric or row["estimate"] is None or effect is None:
                    continue
                x, y = 100 * row["estimate"], effect["estimate"]
                if row["low"] is not None:
                    axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color="0.7", lw=1)
                if effect["low"] is not None:
                    axes.plot([x, x], [effect["low"], effect["high"]], color="0.7", lw=1)
                axes.plot(x, y, "o", ms=4)
                axes.annotate(label_of(row), (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
            axes.axvline(0, color="0.85", lw=0.8, zorder=0)
            axes.axhline(0, color="0.85", lw=0.8, zorder=0)
            axes.set_xlabel(f"MMLU-Pro, student − control, points ({metric.replace('_', ' ')})")
        panels[0, 0].set_ylabel("effect")


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(str(row[name]) for name in ("target", "arm", "of", "updates", "grid"))
