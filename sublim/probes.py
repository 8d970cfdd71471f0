"""Linear probes: can a layer tell a teacher's numbers from the base's, and better than it tells shuffled labels?

    probes.parquet    layer (-1: all), target, seed, shuffled, accuracy, auc, precision, recall, f1, n
    summary.json      the same over seeds, with intervals and selectivity (`ProbeSummaries`)

Both answers to a prompt are on one side of a split, since they share their prompt; standardisation comes from the
training rows alone; no layer, epoch or setting is chosen by the test rows.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from sublim.probe_data import ALL, Rows, Split, read_class, shuffled, split, together
from sublim.probe_fit import Problems, fit, scores
from sublim.probe_metrics import METRICS, Judged, metrics
from sublim.probe_summary import summarise
from sublim.probes_config import AdamFit, ProbesConfig
from sublim.progress import progress

MULTICLASS = "multiclass"
SCHEMA = {
    **{"layer": pl.Int32, "target": pl.String, "seed": pl.Int64, "shuffled": pl.Boolean},
    **{name: pl.Float64 for name in METRICS},
    "n": pl.Int64,
}


class Trial(NamedTuple):
    """One probe to be fitted."""

    layer: int
    seed: int
    shuffled: bool


def fit_probes(
    out: Path, config: ProbesConfig, *, scratch: Path, target: Path | Mapping[str, Path], control: Path
) -> dict[str, Any]:
    """Stage: writes the files of this module's head; `target` is one activation payload, or several by name.

    Costs seconds; all layers, seeds and labellings of a target are one batch.
    """
    named = {"target": target} if isinstance(target, Path) else dict(target)
    zero = read_class(control, config)
    classes = {name: read_class(path, config) for name, path in named.items()}
    questions = [together(name, [zero, one]) for name, one in classes.items()]
    if config.multiclass and len(classes) > 1:
        questions.append(together(MULTICLASS, [zero, *classes.values()]))
    found: dict[tuple[str, Trial], Judged] = {}
    with progress("fitting probes", len(questions)) as advance:
        for rows in questions:
            found |= {(rows.target, trial): tested for trial, tested in probed(rows, config)}
            advance(1)
    lines = [
        {"layer": trial.layer, "target": name, "seed": trial.seed, "shuffled": trial.shuffled}
        | {metric: float(values[0]) for metric, values in metrics(tested).items()}
        | {"n": len(tested.labels)}
        for (name, trial), tested in found.items()
    ]
    pl.DataFrame(lines, schema=SCHEMA).sort("target", "layer", "seed", "shuffled").write_parquet(out / "probes.parquet")
    grouped: dict[tuple[str, int], dict[bool, list[Judged]]] = {}
    for (name, trial), tested in found.items():
        grouped.setdefault((name, trial.layer), {False: [], True: []})[trial.shuffled].append(tested)
    (out / "summary.json").write_text(summarise(grouped, config).model_dump_json(indent=1))
    return {
        "rows": {rows.target: len(rows.labels) for rows in questions},
        "identical": {rows.target: identical(rows) for rows in questions},
    }


def identical(rows: Rows) -> float:
    """Share of the targets' rows with the very same activations as the control's to that prompt: none can tell them."""
    control = {int(rows.prompts[n]): n for n in np.flatnonzero(rows.labels == 0)}
    others = np.flatnonzero(rows.labels != 0).tolist()
    same = [
        torch.equal(rows.values[:, n], rows.values[:, control[int(rows.prompts[n])]])
        for n in others
        if int(rows.prompts[n]) in control
    ]
    return sum(same) / len(others)


def probed(rows: Rows, config: ProbesConfig) -> Iterator[tuple[Trial, Judged]]:
    """Every probe of one question on its test split."""
    splits = {seed: split(rows, config, np.random.default_rng([seed, 0])) for seed in config.seeds}
    singles = [Trial(layer, seed, mixed) for layer in rows.layers for seed in config.seeds for mixed in (False, True)]
    yield from _batched(rows.values, rows, config, splits, singles)
    if config.together and len(rows.layers) > 1:
        beside = rows.values.transpose(0, 1).flatten(1)[None]
        trials = [Trial(ALL, seed, mixed) for seed in config.seeds for mixed in (False, True)]
        yield from _batched(beside, rows, config, splits, trials)


def _batched(
    values: torch.Tensor, rows: Rows, config: ProbesConfig, splits: dict[int, Split], trials: list[Trial]
) -> Iterator[tuple[Trial, Judged]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = values.to(device)
    # Weights, their best, gradient and Adam's two moments, and the rows of a step, of the validation or of the test.
    floats = values.shape[2] * (5 * rows.classes + 2 + 3 * max(len(splits[config.seeds[0]].train), 1))
    size = max(1, int(config.memory_gib * 2**30 / (4 * floats)))
    for start in range(0, len(trials), size):
        part = trials[start : start + size]
        problems = _problems(x, rows, config, splits, part)
        fitted = fit(problems, config.fit)
        with torch.no_grad():
            logits = scores(problems, fitted, problems.test).double().cpu().numpy()
        if rows.classes == 2:
            logits = np.concatenate([np.zeros_like(logits), logits], 2)
        labels = problems.labels.gather(1, problems.test).cpu().numpy()
        for trial, own, true in zip(part, logits, labels, strict=True):
            yield trial, Judged(own, true, rows.prompts[splits[trial.seed].test])


def _problems(
    x: torch.Tensor, rows: Rows, config: ProbesConfig, splits: dict[int, Split], trials: list[Trial]
) -> Problems:
    device, places = x.device, {layer: place for place, layer in enumerate(rows.layers)}
    epochs = config.fit.epochs if isinstance(config.fit, AdamFit) else 0
    labels, orders = list[np.ndarray](), list[np.ndarray]()
    for trial in trials:
        parts = splits[trial.seed]
        labels.append(
            shuffled(rows.labels, parts, np.random.default_rng([trial.seed, 1])) if trial.shuffled else rows.labels
        )
        rng = np.random.default_rng([trial.seed, 2])
        orders.append(np.array([rng.permutation(parts.train) for _ in range(epochs)]))

    def stacked(arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays).astype(np.int64)).to(device)

    train, validation, test = (stacked([splits[trial.seed][part] for trial in trials]) for part in range(3))
    return Problems(
        x,
        torch.tensor([places.get(trial.layer, 0) for trial in trials], device=device),
        stacked(labels),
        train,
        validation,
        test,
        stacked(orders) if epochs else torch.zeros(len(trials), 0, 0, dtype=torch.long, device=device),
        rows.classes,
    )
