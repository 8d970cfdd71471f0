"""Figures of a score sheet: one dot and whisker for each model, grouped by what is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sublim.evals.sheet.config import ScoreRow
from sublim.plots.svg_files import drawing


def draw_rows(out: Path, rows: Sequence[ScoreRow]) -> None:
    """Writes preferences.svg, shifts.svg, mmlu_pro.svg and mmlu_pro_categories.svg, each only where it has values."""
    whole = [row for row in rows if "/" not in row.questions]
    groups = {
        "preferences": [row for row in whole if row.word],
        "shifts": [row for row in whole if row.metric.startswith("tv_")],
        "mmlu_pro": [row for row in whole if row.metric.startswith("letter_")],
        "mmlu_pro_categories": [row for row in rows if row.questions.startswith("mmlu_pro/")],
    }
    for name, group in groups.items():
        shown = [row for row in group if row.estimate is not None]
        if shown:
            draw_group(out / f"{name}.svg", shown)


def draw_group(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Draws a panel for each metric, with a line for each word or category and a colour for each model."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    lines = list(dict.fromkeys(row.word or row.questions.removeprefix("mmlu_pro/") for row in rows))
    height = 0.8 + len(lines) * max(0.3, 0.16 * len(models))
    with drawing(path, 2.2 + 3.2 * len(metrics), height) as figure:
        panels: Any = figure.subplots(1, len(metrics), squeeze=False, sharey=True)
        for axes, metric in zip(panels[0], metrics, strict=True):
            for place, model in enumerate(models):
                own = [row for row in rows if (row.metric, row.model) == (metric, model)]
                at = [lines.index(row.word or row.questions.removeprefix("mmlu_pro/")) for row in own]
                heights = [y + (place - (len(models) - 1) / 2) * 0.7 / len(models) for y in at]
                for row, y in zip(own, heights, strict=True):
                    if row.low is not None and row.high is not None:
                        axes.plot([row.low, row.high], [y, y], color=f"C{place}", lw=1.2)
                axes.plot([row.estimate for row in own], heights, "o", color=f"C{place}", ms=4, label=model)
            axes.axvline(0, color="0.7", lw=0.8)
            axes.set_title(metric.replace("_", " "))
            axes.set_xlabel(next(row.unit for row in rows if row.metric == metric))
            axes.set_yticks(range(len(lines)), lines)
        panels[0, 0].invert_yaxis()
        panels[0, -1].legend(fontsize=7)
