"""Figures of contrasts between rows: firing rates of features, the largest effects, and the overlap of feature sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sublim.features.config import FeatureFiguresConfig, OverlapRow
from sublim.models.files import read_json
from sublim.plots.svg_files import drawing

Draw = Callable[[Any, str, pl.DataFrame], None]
"""Draws the table of this name into a panel."""
LARGEST = 12
"""Number of effects in a panel."""


def draw_features(
    out: Path, config: FeatureFiguresConfig, *, scratch: Path, contrasts: dict[str, Path], overlap: Path
) -> None:
    """Stage: writes firing.svg, effects.svg and, where sets were compared, overlap.svg of one SAE's contrasts."""
    tables = {name: pl.read_parquet(path / "contrast.parquet") for name, path in sorted(contrasts.items())}
    draw_firing(out / "firing.svg", tables, config.level)
    draw_effects(out / "effects.svg", tables, config.level)
    rows = [OverlapRow.model_validate(row) for row in read_json(overlap / "overlap.json")["rows"]]
    if rows:
        draw_overlap(out / "overlap.svg", rows)


def draw_probe_layers(out: Path, config: FeatureFiguresConfig, *, scratch: Path, probes: Path) -> None:
    """Stage: writes probes.svg with the accuracy of `fit_probes` by layer, with one colour for each target."""
    rows: list[dict[str, Any]] = read_json(probes / "summary.json")["rows"]
    with drawing(out / "probes.svg", 4.6, 2.8) as figure:
        panel: Any = figure.subplots()
        for number, target in enumerate(dict.fromkeys(row["target"] for row in rows)):
            color = f"C{number}"
            for metric, style in (("accuracy", "-"), ("shuffled", "--")):
                own = [row for row in rows if row["target"] == target and row["metric"] == metric and row["layer"] >= 0]
                layers = [row["layer"] for row in own]
                label = target if metric == "accuracy" else None
                panel.plot(layers, [row["estimate"] for row in own], style, color=color, marker="o", ms=3, label=label)
                panel.vlines(layers, [row["low"] for row in own], [row["high"] for row in own], color=color, lw=0.8)
            chance = next(row["chance"] for row in rows if row["target"] == target)
            panel.axhline(chance, color=color, lw=0.7, ls=":")
        panel.set_xlabel("layer")
        panel.set_ylabel("accuracy")
        panel.legend(fontsize=7)


def panels(path: Path, tables: dict[str, pl.DataFrame], width: float, height: float, draw: Draw) -> None:
    """Draws a panel for each table, in rows of at most three."""
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    with drawing(path, width * columns + 0.3, height * lines + 0.2) as figure:
        axes: Any = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, (name, table) in zip(axes, tables.items(), strict=False):
            draw(panel, name, table)
        for panel in axes[len(tables) :]:
            panel.set_axis_off()


def draw_firing(path: Path, tables: dict[str, pl.DataFrame], level: float) -> None:
    """Share of rows in which each feature fires, control on the x axis and target on the y axis."""

    def draw(panel: Any, name: str, table: pl.DataFrame) -> None:
        called = (table["q"] <= level).fill_null(False)
        for chosen, color, size in ((~called, "0.75", 3), (called, "C1", 9)):
            part = table.filter(chosen)
            panel.scatter(part["rate_control"], part["rate_target"], s=size, color=color, linewidths=0)
        panel.plot([0, 1], [0, 1], color="0.6", lw=0.7, zorder=0)
        panel.set_title(f"{name} ({int(called.sum())} significant)")
        panel.set_xlabel("control: share of rows")
        panel.set_ylabel("share of rows")

    panels(path, tables, 2.8, 2.7, draw)


def draw_effects(path: Path, tables: dict[str, pl.DataFrame], level: float) -> None:
    """The largest significant effects of each contrast."""

    def draw(panel: Any, name: str, table: pl.DataFrame) -> None:
        called = table.filter(pl.col("q") <= level)
        best = called.sort(pl.col("effect").abs(), "feature", descending=[True, False]).head(LARGEST)
        places = range(len(best))
        panel.barh(places, best["effect"], color=["C0" if each > 0 else "C3" for each in best["effect"]])
        panel.set_yticks(list(places), [str(feature) for feature in best["feature"]], fontsize=7)
        panel.invert_yaxis()
        panel.axvline(0, color="0.6", lw=0.7)
        panel.set_title(name)
        panel.set_xlabel("effect (pooled sd)")

    panels(path, tables, 2.6, 2.5, draw)


def draw_overlap(path: Path, rows: list[OverlapRow]) -> None:
    """Number of features that every two sets share, above the number expected by chance. A star: corrected p ≤ .05."""
    names = list(dict.fromkeys([row.first for row in rows] + [row.second for row in rows]))
    shades = np.full((len(names), len(names)), np.nan)
    side = 0.85 * len(names)
    with drawing(path, side + 2.2, side + 1.6) as figure:
        panel: Any = figure.subplots()
        for row in rows:
            i, j = names.index(row.first), names.index(row.second)
            share = row.shared / max(1, min(row.sizes))
            shades[i, j] = shades[j, i] = share
            star = "*" if row.p_adjusted is not None and row.p_adjusted <= 0.05 else ""
            for x, y in ((i, j), (j, i)):
                text = f"{row.shared}{star}\n{row.chance:.1f}"
                panel.text(x, y, text, ha="center", va="center", fontsize=7, color="w" if share > 0.5 else "k")
        panel.imshow(shades, cmap="Blues", vmin=0, vmax=1)
        panel.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        panel.set_yticks(range(len(names)), names, fontsize=7)
