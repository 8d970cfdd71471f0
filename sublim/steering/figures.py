"""Figures of a steering run: dose curves beside random vectors, single layers, and alignment during training."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from sublim.plots.svg_files import panels
from sublim.steering.alignment_config import EasTable
from sublim.steering.config import SteeringFiguresConfig
from sublim.steering.dose_curve_config import Curve, SteeredPoint
from sublim.steering.energy_config import OWN, direction

SENSE = {"rate": "answers naming {target}", "mmlu_pro": "MMLU-Pro, right letters"}
"""The other metrics of a point, with their names in figures."""


def draw_steering(
    out: Path,
    config: SteeringFiguresConfig,
    *,
    scratch: Path,
    curve: Path,
    eas: Path | None = None,
    paper: Path | None = None,
    sufficiency: list[Path] | None = None,
    replaced: list[Path] | None = None,
) -> None:
    """Stage: writes SVG figures of one target's dose curve and, where they were measured, of alignment and layers."""
    found = read_curve(curve)
    draw_curve(out / "curve.svg", found, config.target)
    draw_sense(out / "sense.svg", found, config.target)
    if eas is not None:
        draw_alignment(out / "alignment.svg", read_alignment(eas))
    if tables := [read_alignment(each) for each in (paper, eas) if each]:
        draw_teachers(out / "teachers.svg", tables, config.target)
    parts = [("added to the base", sufficiency or []), ("replaced by the base's in the student", replaced or [])]
    if any(paths for _, paths in parts):
        draw_layers(out / "layers.svg", [(name, [read_curve(p) for p in paths]) for name, paths in parts if paths])


def read_curve(payload: Path) -> Curve:
    """The curve in a payload of `steering_curve`."""
    return Curve.model_validate_json((payload / "curve.json").read_bytes())


def read_alignment(payload: Path) -> EasTable:
    """The table in a payload of `alignment`."""
    return EasTable.model_validate_json((payload / "eas.json").read_bytes())


def draw_curve(path: Path, curve: Curve, target: str) -> None:
    """The change of the margin against the strength, a panel for each choice of layers, and random vectors in grey."""
    points = [point for point in curve.points if point.layers and point.estimate is not None]
    with _panels(path, points, f"change of {target}'s margin (nats)") as chosen:
        for panel, own in chosen:
            for number, tokens in enumerate(dict.fromkeys(point.position for point in own)):
                _dose(panel, [point for point in own if point.position == tokens], f"C{number}", tokens)
            panel.axhline(0, color="0.7", lw=0.8)


def draw_sense(path: Path, curve: Curve, target: str) -> None:
    """Sampled rate and MMLU-Pro accuracy against the strength, in the panels of `draw_curve`, with the unsteered values
    dotted. Where neither was measured, there is no file."""
    points = [point for point in curve.points if point.layers and not point.control]
    shown = [kind for kind in SENSE if any(getattr(point, kind) is not None for point in points)]
    if not shown:
        return
    base = curve.points[0]
    with _panels(path, points, "share") as chosen:
        for panel, own in chosen:
            several = len({point.position for point in own}) > 1
            for number, (tokens, kind) in enumerate(product(dict.fromkeys(point.position for point in own), shown)):
                known = [p for p in own if p.position == tokens and getattr(p, kind) is not None]
                known.sort(key=lambda point: point.alpha)
                label = SENSE[kind].format(target=target) + (f", {tokens}" if several else "")
                x, y = [p.alpha for p in known], [getattr(p, kind) for p in known]
                panel.plot(x, y, color=f"C{number}", marker="o", ms=3, lw=1, label=label)
                low, high = ([getattr(p, f"{kind}_{end}") for p in known] for end in ("low", "high"))
                panel.vlines(x, low, high, color=f"C{number}", lw=1)
                if getattr(base, kind) is not None:
                    panel.axhline(getattr(base, kind), color=f"C{number}", lw=0.8, ls=":")
            panel.set_ylim(-0.03, 1.03)


@contextmanager
def _panels(path: Path, points: Sequence[SteeredPoint], label: str) -> Generator[list[tuple[Any, list[SteeredPoint]]]]:
    """Gives a panel with its points for each choice of layers. Without points, the figure says so."""
    choices = list(dict.fromkeys(tuple(point.layers) for point in points if not point.control))
    columns = max(1, min(3, len(choices)))
    lines = max(1, -(-len(choices) // columns))
    with panels(path, 2.9 * columns + 0.4, 2.4 * lines + 0.2, lines, columns, sharey=True) as grid:
        axes: list[Any] = [*grid.flat]
        used = list(zip(axes, choices, strict=False))
        yield [(panel, [point for point in points if tuple(point.layers) == layers]) for panel, layers in used]
        for panel, layers in used:
            panel.set_title("layer " + " + ".join(map(str, layers)))
            panel.set_xlabel("strength")
        for panel in axes[len(choices) :]:
            panel.set_axis_off()
        if choices:
            axes[0].set_ylabel(label)
            axes[0].legend(fontsize=7)
        else:
            axes[0].text(0.5, 0.5, "no point could be measured", ha="center", color="0.5")


def _dose(panel: Any, points: Sequence[SteeredPoint], color: str, label: str) -> None:
    random = [point for point in points if point.control]
    panel.scatter([p.alpha for p in random], [p.estimate for p in random], s=6, color="0.65", zorder=1)
    own = sorted((point for point in points if not point.control), key=lambda point: point.alpha)
    panel.plot([p.alpha for p in own], [p.estimate for p in own], color=color, marker="o", ms=3, lw=1, label=label)
    bounded = [p for p in own if p.low is not None]
    panel.vlines([p.alpha for p in bounded], [p.low for p in bounded], [p.high for p in bounded], color=color, lw=1)


def draw_layers(path: Path, parts: Sequence[tuple[str, Sequence[Curve]]]) -> None:
    """The change of the margin by layer, with one coloured line for each pair, random vectors in grey and controls
    that hold part of the student's change as crosses."""
    with panels(path, 3.6 * len(parts) + 0.4, 2.6, 1, len(parts)) as (row,):
        for panel, (name, curves) in zip(row, parts, strict=True):
            for number, curve in enumerate(curves):
                points = [point for point in curve.points if point.layers and point.estimate is not None]
                random = [point for point in points if point.control]
                panel.scatter([p.layers[0] for p in random], [p.estimate for p in random], s=5, color="0.65")
                true = [point for point in points if not point.control]
                own = [point for point in true if all(direction(name) == OWN for name in point.vectors)]
                fair = [point for point in true if point not in own]
                if fair:
                    layers, moved = [p.layers[0] for p in fair], [p.estimate for p in fair]
                    label = None if number else "controls that hold part of the change"
                    panel.scatter(layers, moved, s=9, c="C3", marker="x", lw=0.7, label=label)
                    panel.legend(fontsize=6)
                own.sort(key=lambda point: point.layers[0])
                panel.plot([p.layers[0] for p in own], [p.estimate for p in own], color=f"C{number}", marker="o", ms=3)
            panel.axhline(0, color="0.7", lw=0.8)
            panel.set_title(f"v_student {name}")
            panel.set_xlabel("layer")
        row[0].set_ylabel("change of the margin (nats)")


def draw_alignment(path: Path, table: EasTable) -> None:
    """The cosine with the teacher's vector by layer, with a panel for each checkpoint."""
    updates = list(dict.fromkeys(row.update for row in table.rows))
    with panels(path, 2.9 * len(updates) + 0.6, 2.6, 1, len(updates), sharey=True) as (line,):
        for panel, update in zip(line, updates, strict=True):
            rows = sorted((row for row in table.rows if row.update == update), key=lambda row: row.layer)
            layers = [row.layer for row in rows]
            for number, kind in enumerate(("student", "control", "difference")):
                label = {"difference": "student − control"}.get(kind, kind)
                means = [getattr(row, kind).mean for row in rows]
                panel.plot(layers, means, color=f"C{number}", marker="o", ms=3, lw=1, label=label)
            for row in rows:
                panel.scatter([row.layer] * len(row.random), row.random, s=4, color="0.7", zorder=1)
            panel.axhline(0, color="0.7", lw=0.8)
            panel.set_title(f"after {update} updates" if update else "after training")
            panel.set_xlabel("layer")
        line[0].set_ylabel("cosine with v_teacher")
        line[0].legend(fontsize=7)


def draw_teachers(path: Path, tables: Sequence[EasTable], target: str) -> None:
    """Each alignment after the last update by layer: with the own teacher, with every other, and with v_unique."""
    with panels(path, 3.6 * len(tables) + 0.4, 2.8, 1, len(tables), sharey=True) as (line,):
        for panel, table in zip(line, tables, strict=True):
            rows = sorted((r for r in table.alignments if r.update == table.rows[-1].update), key=lambda r: r.layer)
            layers = [row.layer for row in rows]
            for name in rows[0].others:
                panel.plot(layers, [row.others[name].mean for row in rows], color="0.6", marker=".", lw=0.8, label=name)
            panel.plot(layers, [row.own.mean for row in rows], color="C0", marker="o", ms=3, label=target)
            unique = [row for row in rows if row.unique]
            means = [row.unique.mean for row in unique if row.unique]
            panel.plot([row.layer for row in unique], means, color="C0", ls="--", lw=1, label="v_unique")
            panel.axhline(0, color="0.7", lw=0.8)
            panel.set_title(table.measure)
            panel.set_xlabel("layer")
        line[0].set_ylabel("cosine")
        line[0].legend(fontsize=7)
