"""Linear probes: whether a layer tells a teacher's rows from the base's, and better than it tells shuffled labels.

    probes.parquet    layer (-1: all), target, seed, shuffled, accuracy, auc, precision, recall, f1, n
    summary.json      the same over seeds, with intervals and selectivity (`ProbeSummaries`)

All answers to a prompt are in the same part of a split. Means and scales for standardisation come from the training
rows alone, and no layer, epoch or setting is chosen with test rows.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from sublim.core.progress import progress
from sublim.memory.fitting import MemoryFit
from sublim.probes.config import AdamFit, ProbesConfig
from sublim.probes.data import ALL, Rows, Split, read_class, shuffled, split, together
from sublim.probes.fit import Problems, fit, scores
from sublim.probes.metrics import METRICS, Judged, metrics
from sublim.probes.summary import summarise

MULTICLASS = "multiclass"
Splits = Mapping[tuple[str, int], Split]
"""The split of every classification and seed."""
SCHEMA = {
    **{"layer": pl.Int32, "target": pl.String, "seed": pl.Int64, "shuffled": pl.Boolean},
    **{name: pl.Float64 for name in METRICS},
    "n": pl.Int64,
}


class Trial(NamedTuple):
    """One probe: its classification, layer and seed, and whether its labels are shuffled."""

    target: str
    layer: int
    seed: int
    shuffled: bool


def fit_probes(
    out: Path, config: ProbesConfig, *, scratch: Path, target: Path | Mapping[str, Path], control: Path
) -> dict[str, Any]:
    """Stage: writes the files that the head of this module lists, from activation payloads of one or more targets.

    All layers, targets, seeds and labellings of one shape are fitted as one batch (see `probed`), mostly in seconds.
    """
    named = {"target": target} if isinstance(target, Path) else dict(target)
    classes = [read_class(path, config) for path in (control, *named.values())]
    asked = {name: [0, number] for number, name in enumerate(named, start=1)}
    if config.multiclass and len(named) > 1:
        asked[MULTICLASS] = [*range(len(classes))]
    questions = together(classes, asked)
    found = probed(questions, config)
    lines = [
        trial._asdict()
        | {metric: float(values[0]) for metric, values in metrics(tested).items()}
        | {"n": len(tested.labels)}
        for trial, tested in found.items()
    ]
    pl.DataFrame(lines, schema=SCHEMA).sort("target", "layer", "seed", "shuffled").write_parquet(out / "probes.parquet")
    grouped: dict[tuple[str, int], dict[bool, list[Judged]]] = {}
    for trial, tested in found.items():
        grouped.setdefault((trial.target, trial.layer), {False: [], True: []})[trial.shuffled].append(tested)
    (out / "summary.json").write_text(summarise(grouped, config).model_dump_json(indent=1), encoding="utf-8")
    return {
        "rows": {rows.target: len(rows.labels) for rows in questions},
        "identical": {rows.target: identical(rows) for rows in questions},
    }


def identical(rows: Rows) -> float:
    """Share of the targets' rows whose activations equal those of the control's row for the same prompt.

    No probe can tell such rows apart.
    """
    of_control = rows.labels == 0
    control = dict(zip(rows.prompts[of_control].tolist(), rows.places[of_control].tolist(), strict=True))
    others = np.flatnonzero(~of_control).tolist()
    same = [
        torch.equal(rows.values[:, int(rows.places[n])], rows.values[:, control[int(rows.prompts[n])]])
        for n in others
        if int(rows.prompts[n]) in control
    ]
    return sum(same) / len(others)


def trials(rows: Rows, config: ProbesConfig) -> list[Trial]:
    """Every probe of one classification."""
    layers = [*rows.layers, *([ALL] if config.together and len(rows.layers) > 1 else [])]
    return [
        Trial(rows.target, layer, seed, mixed) for layer in layers for seed in config.seeds for mixed in (False, True)
    ]


def probed(questions: Sequence[Rows], config: ProbesConfig) -> dict[Trial, Judged]:
    """Fits every probe and tests it on its test split. Returns the results in the order of `questions` and `trials`.

    Probes of the same shape are one batch: those on single layers of all targets, those on all layers together, and the
    same for several classes. Targets whose rows were filtered separately have splits of other sizes and so batches of
    their own.
    """
    splits = {
        (rows.target, seed): split(rows, config, np.random.default_rng([seed, 0]))
        for rows in questions
        for seed in config.seeds
    }
    batches: dict[tuple[bool, int, tuple[int, ...]], list[Trial]] = {}
    for rows in questions:
        for trial in trials(rows, config):
            sizes = tuple(map(len, splits[trial.target, trial.seed]))
            batches.setdefault((trial.layer == ALL, rows.classes, sizes), []).append(trial)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values, asked = questions[0].values.to(device), {rows.target: rows for rows in questions}
    found: dict[Trial, Judged] = {}
    room = MemoryFit("probes", "read fewer rows or fewer layers")
    with progress("fitting probes", sum(map(len, batches.values()))) as advance:
        for (beside, _, sizes), batch in batches.items():
            x = values.transpose(0, 1).flatten(1)[None] if beside else values
            size = at_once(x.shape[2], asked[batch[0].target].classes, sizes[0], config)
            for part in room.each(batch, partial(judged, x, asked, splits, config), size):
                found |= part
                advance(len(part))
    return {trial: found[trial] for rows in questions for trial in trials(rows, config)}


def at_once(width: int, classes: int, rows: int, config: ProbesConfig) -> int:
    """The number of probes that fit into `memory_gib` at the same time."""
    # The weights, the best weights, the gradient and Adam's two moments; and the rows of a step or of a split.
    floats = width * (5 * classes + 2 + 3 * rows)
    return max(1, int(config.memory_gib * 2**30 / (4 * floats)))


def judged(
    x: torch.Tensor, asked: Mapping[str, Rows], splits: Splits, config: ProbesConfig, batch: Sequence[Trial]
) -> dict[Trial, Judged]:
    """Fits one batch of probes and tests each on its test split.

    `x`: activations [layers, rows, features]; for probes on all layers [1, rows, layers x features]. `asked`: every
    classification, by name.
    """
    problems = _problems(x, asked, splits, config, batch)
    fitted = fit(problems, config.fit)
    with torch.no_grad():
        logits = scores(problems, fitted, problems.test).double().cpu().numpy()
    if problems.classes == 2:
        logits = np.concatenate([np.zeros_like(logits), logits], 2)
    labels = problems.labels.gather(1, problems.test).cpu().numpy()
    return {
        trial: Judged(own, true, asked[trial.target].prompts[splits[trial.target, trial.seed].test])
        for trial, own, true in zip(batch, logits, labels, strict=True)
    }


def _problems(
    x: torch.Tensor, asked: Mapping[str, Rows], splits: Splits, config: ProbesConfig, batch: Sequence[Trial]
) -> Problems:
    device, first = x.device, asked[batch[0].target]
    layers = {layer: place for place, layer in enumerate(first.layers)}
    epochs = config.fit.epochs if isinstance(config.fit, AdamFit) else 0
    labels, orders, parts = list[np.ndarray](), list[np.ndarray](), list[list[np.ndarray]]()
    for trial in batch:
        rows, own = asked[trial.target], splits[trial.target, trial.seed]
        mixed = shuffled(rows.labels, own, np.random.default_rng([trial.seed, 1])) if trial.shuffled else rows.labels
        labels.append(np.zeros(x.shape[1], np.int64))
        labels[-1][rows.places] = mixed
        parts.append([rows.places[part] for part in own])
        rng = np.random.default_rng([trial.seed, 2])
        orders.append(np.array([rows.places[rng.permutation(own.train)] for _ in range(epochs)]))

    def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays).astype(np.int64)).to(device)

    train, validation, test = (stacked([own[part] for own in parts]) for part in range(3))
    return Problems(
        x,
        torch.tensor([layers.get(trial.layer, 0) for trial in batch], device=device),
        stacked(labels),
        train,
        validation,
        test,
        stacked(orders) if epochs else torch.zeros(len(batch), 0, 0, dtype=torch.long, device=device),
        first.classes,
    )
