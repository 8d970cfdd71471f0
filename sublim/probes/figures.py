"""The figure of probes: test accuracy by layer, beside chance and the accuracy with shuffled labels."""

from pathlib import Path
from typing import Any

from sublim.plots.svg_files import panels
from sublim.probes.config import ProbeFiguresConfig, ProbeSummaries, ProbeSummary
from sublim.probes.data import ALL


def draw_probes(out: Path, config: ProbeFiguresConfig, *, scratch: Path, probes: Path) -> None:
    """Stage: writes probes.svg, with a panel for each target. The probe on all layers is at the right of each panel."""
    rows = ProbeSummaries.model_validate_json((probes / "summary.json").read_bytes()).rows
    targets = list(dict.fromkeys(row.target for row in rows))
    with panels(out / "probes.svg", 1 + config.width * len(targets), 3.2, 1, len(targets), sharey=True) as (row,):
        for axes, target in zip(row, targets, strict=True):
            draw_panel(axes, [each for each in rows if each.target == target])
            axes.set_title(target)
        row[0].set_ylabel("test accuracy")
        row[-1].legend(fontsize=7)


def draw_panel(axes: Any, rows: list[ProbeSummary]) -> None:
    """One target's accuracies."""
    layers = sorted({row.layer for row in rows} - {ALL})
    places = {layer: layer for layer in layers} | {ALL: layers[-1] + max(1, (layers[-1] - layers[0]) // 8)}
    for name, colour in (("accuracy", "C0"), ("shuffled", "0.5")):
        own = sorted((row for row in rows if row.metric == name), key=lambda row: places[row.layer])
        at = [places[row.layer] for row in own]
        errors = [[row.estimate - row.low for row in own], [row.high - row.estimate for row in own]]
        label = "shuffled labels" if name == "shuffled" else "probe"
        axes.errorbar(at, [row.estimate for row in own], errors, fmt="o", ms=3, lw=1, color=colour, label=label)
    axes.axhline(rows[0].chance, color="0.7", lw=0.8, label="commonest class")
    ticks = layers[:: max(1, len(layers) // 8)] + ([ALL] if any(row.layer == ALL for row in rows) else [])
    axes.set_xticks([places[layer] for layer in ticks], ["all" if layer == ALL else str(layer) for layer in ticks])
    axes.set_xlabel("layer")
