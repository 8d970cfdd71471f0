"""Figures of an MNIST run: accuracy of every arm, and cosines of gradients and of parameter shifts."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sublim.plots.svg_files import drawing
from sublim.toys.mnist.config import ARMS, MnistFiguresConfig


def draw_accuracy(path: Path, table: pl.DataFrame, bins: int) -> None:
    """Draws a histogram over models for each arm, with its mean."""
    arms = [arm for arm in ARMS if arm in table["arm"].unique().to_list()]
    with drawing(path, 6, 0.9 * len(arms) + 0.5) as figure:
        panels: Any = figure.subplots(len(arms), 1, sharex=True, squeeze=False)
        for place, arm in enumerate(arms):
            values = table.filter(pl.col("arm") == arm)["accuracy"].to_numpy()
            axes = panels[place, 0]
            axes.hist(values, bins=np.linspace(0, 1, bins + 1), color=f"C{place}")
            axes.axvline(values.mean(), color="0.2", lw=1)
            axes.set_ylabel(arm.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=8)
            axes.set_yticks([])
        panels[-1, 0].set_xlabel("test accuracy")


def draw_alignment(path: Path, table: pl.DataFrame) -> None:
    """Draws accuracy against the parameter-shift cosine, and the mean gradient cosine over epochs."""
    arms = [
        arm
        for arm in ARMS
        if not table.filter((pl.col("arm") == arm) & pl.col("shift_cosine").is_not_null()).is_empty()
    ]
    with drawing(path, 7.5, 3) as figure:
        panels: Any = figure.subplots(1, 2)
        for place, arm in enumerate(arms):
            part = table.filter(pl.col("arm") == arm)
            panels[0].scatter(
                part["shift_cosine"].to_list(), part["accuracy"].to_list(), s=8, color=f"C{place}", label=arm
            )
            if part["gradient_cosine"].null_count() == 0:
                panels[1].plot(np.array(part["gradient_cosine"].to_list()).mean(0), color=f"C{place}", label=arm)
        panels[0].set_xlabel("cosine of student's and teacher's parameter shift")
        panels[0].set_ylabel("test accuracy")
        panels[1].set_xlabel("epochs of distillation done")
        panels[1].set_ylabel("cosine of distillation and task gradient")
        panels[1].axhline(0, color="0.7", lw=0.8)
        panels[0].legend(fontsize=7)


def draw_mnist(out: Path, config: MnistFiguresConfig, *, scratch: Path, run: Path) -> None:
    """Stage: writes SVG figures of `run`, a payload of `train_mnist`."""
    table = pl.read_parquet(run / "models.parquet")
    draw_accuracy(out / "accuracy.svg", table, config.bins)
    if table["shift_cosine"].null_count() < len(table):
        draw_alignment(out / "alignment.svg", table)
