"""Figures of a superposition sweep: rebuilt features, directions of features, and superposition by sparsity."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy import ndarray
from safetensors.numpy import load_file

from sublim.plots.svg_files import panels
from sublim.toys.superposition.config import SuperpositionFiguresConfig
from sublim.toys.superposition.results import mean_interval

LOOKS = {
    "student": ("student", "C0", "-"),
    "init": ("untrained initialisation", "0.5", "--"),
    "decayed": ("the same, decayed", "0.5", ":"),
    "other_student": ("student, other initialisation", "C3", "-"),
    "teacher": ("teacher", "C2", "-"),
}


def _curve(axes: Axes, table: pl.DataFrame, column: str, roles: Sequence[str]) -> None:
    """Mean over seeds against p_active, with 95 % t intervals. The values of p_active are spaced equally."""
    points = table["p_active"].unique().sort().to_list()
    for role in roles:
        part = table.filter(pl.col("role") == role)
        if part.is_empty():
            continue
        groups = [mean_interval(part.filter(pl.col("p_active") == point)[column]) for point in points]
        label, colour, line = LOOKS[role]
        axes.plot(range(len(points)), [group["estimate"] for group in groups], line, color=colour, label=label, lw=1.2)
        if all(group["low"] is not None for group in groups):
            low, high = [group["low"] for group in groups], [group["high"] for group in groups]
            axes.fill_between(range(len(points)), low, high, color=colour, alpha=0.2, lw=0)
    axes.set_xticks(range(len(points)), [f"{point:g}" for point in points], rotation=60, fontsize=7)
    axes.set_xlabel("p_active")


def draw_rebuilt(path: Path, table: pl.DataFrame, decay: float) -> None:
    """Norm ratio and cosine to the teacher's feature, for up to five features that the student did not learn; beside
    the norm ratio what weight decay alone leaves of the initialisation's."""
    init = pl.col("role") == "init"
    decayed = table.filter(init).with_columns(pl.col("norm_ratio") * decay, role=pl.lit("decayed"))
    table = pl.concat([table, decayed])
    features = table["feature"].unique().sort().to_list()[:5]
    with panels(path, 2.4 * len(features) + 0.6, 4.6, 2, len(features), sharex=True, sharey="row") as grid:
        for place, feature in enumerate(features):
            part = table.filter(pl.col("feature") == feature)
            for row, column in enumerate(("norm_ratio", "cosine")):
                roles = ("student", "init", "other_student", *(("decayed",) if column == "norm_ratio" else ()))
                _curve(grid[row, place], part, column, roles)
            grid[0, place].set_title(f"feature {feature}")
            grid[0, place].set_xlabel("")
        grid[0, 0].set_ylabel("norm / teacher's norm")
        grid[1, 0].set_ylabel("cosine to teacher's")
        grid[0, -1].legend(fontsize=7)


def draw_sparsity(path: Path, table: pl.DataFrame) -> None:
    """Draws superposition and polysemanticity against p_active."""
    with panels(path, 7, 2.8, 1, 2) as (pair,):
        for axes, column in zip(pair, ("superposition", "polysemanticity"), strict=True):
            by_model = table.group_by(["p_active", "seed", "role"]).agg(pl.col(column).mean()).sort("p_active", "seed")
            _curve(axes, by_model, column, ("teacher", "student", "other_student", "init"))
            axes.set_title("superposition ‖W‖² / m" if column == "superposition" else "polysemanticity, mean of rows")
        pair[1].legend(fontsize=7)


def _unit(rows: Float[ndarray, "f d"]) -> Float[ndarray, "f d"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def draw_matrices(path: Path, points: Sequence[float], rows: Sequence[tuple[str, list[Float[ndarray, "f f"]]]]) -> None:
    """Draws a grid of square matrices, with one column per p_active and one row per kind of model."""
    with panels(path, 1.9 * len(points) + 0.9, 1.9 * len(rows) + 0.3, len(rows), len(points)) as grid:
        image = None
        for place, (name, matrices) in enumerate(rows):
            for axes, point, matrix in zip(grid[place], points, matrices, strict=True):
                image = axes.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                if place == 0:
                    axes.set_title(f"p_active {point:g}")
            grid[place, 0].set_ylabel(name)
        grid[0, 0].figure.colorbar(image, ax=grid, shrink=0.7)


def draw_superposition(out: Path, config: SuperpositionFiguresConfig, *, scratch: Path, toy: Path) -> None:
    """Stage: writes SVG figures of every experiment in `toy`, a payload of `train_superposition`."""
    table = pl.read_parquet(toy / "rows.parquet")
    decay = json.loads((toy / "rebuilt.json").read_bytes())[0]["decay"]
    weights = load_file(toy / "weights.safetensors")
    for (name, auxiliary), part in table.group_by(["experiment", "auxiliary"], maintain_order=True):
        label = f"{name}-{auxiliary}" if auxiliary else str(name)
        draw_rebuilt(out / f"rebuilt-{label}.svg", part, decay)
        draw_sparsity(out / f"sparsity-{label}.svg", part)
        points = part["p_active"].unique(maintain_order=True).to_list()
        shown = [point for point in points if point in config.panels] or points[:4]
        at = [points.index(point) for point in shown]
        teacher, student = (weights[f"{name}.{auxiliary}.{role}"][at, 0, ..., :-1] for role in ("teacher", "student"))
        features = part["feature"].unique(maintain_order=True).to_list()
        place = features.index(config.feature) if name == "ablation" and config.feature in features else 0
        student = student[:, place]
        kind = f"student without {features[place]}" if name == "ablation" else "student"
        rows = [("teacher", [w @ w.T for w in teacher]), (kind, [w @ w.T for w in student])]
        draw_matrices(out / f"wtw-{label}.svg", shown, rows)
        cosines = [_unit(a) @ _unit(b).T for a, b in zip(teacher, student, strict=True)]
        draw_matrices(out / f"directions-{label}.svg", shown, [(f"cosine, teacher × {kind}", cosines)])
