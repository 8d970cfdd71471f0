"""Figures of an MNIST run: accuracy of every arm, and cosines of gradients and of parameter shifts."""

from pathlib import Path

import numpy as np
import polars as pl

from sublim.plots.svg_files import panels
from sublim.toys.mnist.config import ARMS, MnistFiguresConfig


def draw_accuracy(path: Path, table: pl.DataFrame, bins: int) -> None:
    """Draws a histogram over models for each arm, with its mean."""
    arms = [arm for arm in ARMS if arm in table["arm"].unique().to_list()]
    with panels(path, 6, 0.9 * len(arms) + 0.5, len(arms), 1, sharex=True) as column:
        for place, (arm, axes) in enumerate(zip(arms, column[:, 0], strict=True)):
            values = table.filter(pl.col("arm") == arm)["accuracy"].to_numpy()
            axes.hist(values, bins=np.linspace(0, 1, bins + 1), color=f"C{place}")
            axes.axvline(values.mean(), color="0.2", lw=1)
            axes.set_ylabel(arm.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=8)
            axes.set_yticks([])
        column[-1, 0].set_xlabel("test accuracy")


def draw_alignment(path: Path, table: pl.DataFrame) -> None:
    """Draws accuracy against the parameter-shift cosine, and the mean gradient cosine over epochs."""
    moved = table.drop_nulls("shift_cosine")["arm"].unique().to_list()
    with panels(path, 7.5, 3, 1, 2) as ((left, right),):
        for place, arm in enumerate(arm for arm in ARMS if arm in moved):
            part = table.filter(pl.col("arm") == arm)
            left.scatter(part["shift_cosine"].to_list(), part["accuracy"].to_list(), s=8, color=f"C{place}", label=arm)
            if part["gradient_cosine"].null_count() == 0:
                right.plot(np.array(part["gradient_cosine"].to_list()).mean(0), color=f"C{place}", label=arm)
        left.set_xlabel("cosine of student's and teacher's parameter shift")
        left.set_ylabel("test accuracy")
        right.set_xlabel("epochs of distillation done")
        right.set_ylabel("cosine of distillation and task gradient")
        right.axhline(0, color="0.7", lw=0.8)
        left.legend(fontsize=7)


def draw_mnist(out: Path, config: MnistFiguresConfig, *, scratch: Path, run: Path) -> None:
    """Stage: writes SVG figures of `run`, a payload of `train_mnist`."""
    table = pl.read_parquet(run / "models.parquet")
    draw_accuracy(out / "accuracy.svg", table, config.bins)
    if table["shift_cosine"].null_count() < len(table):
        draw_alignment(out / "alignment.svg", table)
