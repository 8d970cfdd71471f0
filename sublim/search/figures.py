"""Figures of a parameter search, drawn by Optuna: history, importance, parallel coordinates and the Pareto front."""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import optuna
from optuna import Study
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from sublim.plots.svg_files import SETTINGS
from sublim.search.config import UNITS, DrawSearchConfig, Objective, direction
from sublim.search.space import distributions

FEW = 4
"""With fewer finished trials, nothing can be said about the parameters."""
NOT_DRAWN = "not_drawn.json"


class Drawing(NamedTuple):
    """A figure that may be drawn."""

    name: str
    draw: Callable[[], Any]
    """Draws on matplotlib's current figure."""
    missing: str | None
    """Why it cannot be drawn; None where it can."""


def draw_search(out: Path, config: DrawSearchConfig, *, scratch: Path) -> None:
    """Stage: writes each figure as SVG and PNG, and not_drawn.json with the reason for each missing figure."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    study = rebuilt(config)
    missing: dict[str, str] = {}
    for drawing in drawings(config, study):
        if drawing.missing is not None:
            missing[drawing.name] = drawing.missing
            continue
        with warnings.catch_warnings(), plt.rc_context(SETTINGS):
            warnings.simplefilter("ignore")  # Optuna calls its matplotlib figures experimental
            drawing.draw()
            figure = plt.gcf()
            figure.set_size_inches(8, 4.5)
            figure.savefig(out / f"{drawing.name}.svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
            figure.savefig(out / f"{drawing.name}.png", metadata={"Software": None}, dpi=80, bbox_inches="tight")
            plt.close("all")
    (out / NOT_DRAWN).write_text(json.dumps(missing, indent=1), encoding="utf-8")


def rebuilt(config: DrawSearchConfig) -> Study:
    """The study as an Optuna study in memory, made from the records of its trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=[direction(name) for name in config.objectives])
    known = distributions(config.space)
    for record in config.trials:
        if record.state in ("complete", "pruned"):
            trial = optuna.create_trial(
                state=TrialState.COMPLETE if record.state == "complete" else TrialState.PRUNED,
                params=record.params,
                distributions={name: known[name] for name in record.params},
                values=list(record.values) if record.values is not None else None,
                intermediate_values={int(step): value for step, value in record.intermediate.items()},
            )
            study.add_trial(trial)
    return study


def drawings(config: DrawSearchConfig, study: Study) -> Iterator[Drawing]:
    """All figures that this study may have."""
    import optuna.visualization.matplotlib as plots

    finished = [record for record in config.trials if record.state == "complete"]
    several = None if len(finished) >= FEW else f"{len(finished)} finished trials; {FEW} are needed"
    for place, name in enumerate(config.objectives):
        values = [record.values[place] for record in finished if record.values is not None]
        flat = not values or math.isclose(min(values), max(values))
        lacking = several or ("every trial has the same value" if flat else None)
        suffix, target = (f"-{name}", _value(place)) if len(config.objectives) > 1 else ("", None)
        shown = {"study": study, "target": target, "target_name": _title(name)}
        fanova = FanovaImportanceEvaluator(seed=0)
        yield Drawing(
            f"history{suffix}",
            partial(plots.plot_optimization_history, **shown),
            None if finished else "no trial is finished",
        )
        yield Drawing(f"importance{suffix}", partial(plots.plot_param_importances, evaluator=fanova, **shown), lacking)
        yield Drawing(f"parallel{suffix}", partial(plots.plot_parallel_coordinate, **shown), lacking)
    if len(config.objectives) > 1:
        names = [_title(name) for name in config.objectives]
        yield Drawing("front", partial(plots.plot_pareto_front, study, target_names=names), several)
    if any(record.intermediate for record in config.trials):
        yield Drawing("rungs", partial(plots.plot_intermediate_values, study), None)


def _value(place: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[place]


def _title(name: Objective) -> str:
    return f"{name}, {UNITS[name]}"
