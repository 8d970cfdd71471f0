"""Toy models of superposition: does a student rebuild a feature that it never learns, because its teacher has it?

There are two experiments with teachers and students that share an initialisation. In *ablation*, one feature is left
out of the student's loss. In *auxiliary*, the student learns only features that its teacher never learned. All models
of an experiment are trained at once. All values of p_active see the same uniform numbers of their seed, thresholded at
their own p_active, so that differences between values of p_active are paired.
"""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.tensor_files import write_tensors
from sublim.toys.streams import stream_key
from sublim.toys.superposition.config import SuperpositionConfig
from sublim.toys.superposition.native import NativeEngine
from sublim.toys.superposition.results import Experiment, loss_rows, rebuilt, rows
from sublim.toys.superposition.steps import Cohort, TensorEngine, Training, begin

log = logging.getLogger(__name__)


def experiments(config: SuperpositionConfig) -> list[Experiment]:
    """The experiments that `config` asks for."""
    found: list[Experiment] = []
    if config.ablated:
        weight = importance(config, 0)
        students = weight.repeat(len(config.ablated), 1)  # a copy, so that the teacher's weights do not change
        students[range(len(config.ablated)), list(config.ablated)] = 0
        found.append(Experiment("ablation", 0, weight, students, config.ablated))
    for k in config.auxiliary:
        weight = importance(config, k)
        learned = torch.arange(len(weight)) < config.features
        found.append(
            Experiment("auxiliary", k, weight * learned, (weight * ~learned)[None], tuple(range(config.features)))
        )
    return found


def importance(config: SuperpositionConfig, auxiliary: int) -> Float[Tensor, " f"]:
    """Loss weights of all features, with the auxiliary features last."""
    return config.importance ** torch.arange(config.features + auxiliary, dtype=torch.float32)


def initialise(config: SuperpositionConfig, features: int, stream: str) -> Float[Tensor, "s f d+1"]:
    """The Xavier-normal weights W and zero biases of one model per seed."""
    found = torch.zeros(len(config.seeds), features, config.hidden + 1)
    for one, seed in zip(found, config.seeds, strict=True):
        generator = torch.Generator().manual_seed(stream_key(seed, f"{stream} {features}"))
        one[:, :-1] = (
            torch.randn(features, config.hidden, generator=generator) * (2 / (features + config.hidden)) ** 0.5
        )
    return found


def train_cohort(
    cohort: Cohort, value: Float[Tensor, "g m f d+1"], config: SuperpositionConfig, saved: Path
) -> Training:
    """Trains from `value`, or from the checkpoint `saved` of an interrupted run.

    Raises UserError where the settings ask for CUDA and there is no device.
    """
    training, start = begin(value, config), 0
    if saved.exists():
        state = load_file(saved)
        start = int(state.pop("step"))
        training = Training(**state)
    if start == config.steps:
        return training
    chosen = config.resolved().engine
    if chosen == "cuda" and not torch.cuda.is_available():
        raise UserError("engine cuda: torch finds no CUDA device: set engine=auto")
    if chosen == "native":
        engine = NativeEngine(cohort, training, config)
    else:
        engine = TensorEngine(cohort, training, config, "cuda" if chosen == "cuda" else "cpu")
    with progress(saved.stem, config.steps) as advance:
        advance(start)
        while start < config.steps:
            stop = min(config.steps, start + config.checkpoint_every)
            engine.run(start, stop)
            write_tensors(saved, {**training._asdict(), "step": torch.tensor(stop)})
            kill_point(f"superposition:{saved.stem}:{stop}")
            advance(stop - start)
            start = stop
    return training


class Trained(NamedTuple):
    """The models of an experiment after training. In `students`, those of the other initialisation come last."""

    init: Float[Tensor, "s f d+1"]
    other_init: Float[Tensor, "s f d+1"]
    teachers: Training
    students: Training


def run_experiment(experiment: Experiment, config: SuperpositionConfig, scratch: Path) -> Trained:
    """Trains the teachers of an experiment, then all students on their teachers' outputs."""
    features = config.features + experiment.auxiliary
    points, seeds = len(config.p_active), len(config.seeds)
    init, other = (initialise(config, features, stream) for stream in ("initialisation", "other initialisation"))
    full = importance(config, experiment.auxiliary)
    p_active = torch.tensor(config.p_active).repeat_interleave(seeds)
    name = f"{experiment.name}-{experiment.auxiliary}"

    def trained(role: str, value: Tensor, weight: Tensor, teacher: Tensor | None) -> Training:
        keys = torch.tensor([stream_key(seed, f"{role} data {features}") for seed in config.seeds]).repeat(points)
        cohort = Cohort(p_active, keys, weight.expand(points * seeds, -1, -1).contiguous(), full, teacher)
        return train_cohort(cohort, value, config, scratch / f"{name}-{role}s.safetensors")

    teachers = trained("teacher", init.repeat(points, 1, 1)[:, None], experiment.teacher_weight[None], None)
    students = len(experiment.student_weight)
    starts = [init, other] if config.other_initialisation else [init]
    value = torch.cat([start.repeat(points, 1, 1)[:, None].expand(-1, students, -1, -1) for start in starts], dim=1)
    weight = experiment.student_weight.repeat(len(starts), 1)
    return Trained(init, other, teachers, trained("student", value, weight, teachers.value[:, 0]))


def _grid(tensor: Tensor, config: SuperpositionConfig) -> Tensor:
    """Reshapes [g, ...] to [p, s, ...]."""
    return tensor.unflatten(0, (len(config.p_active), len(config.seeds)))


def tables(experiment: Experiment, trained: Trained, config: SuperpositionConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The result rows and the recorded losses of an experiment."""
    places, students = len(experiment.measured), len(experiment.student_weight)
    shape = (len(config.p_active), len(config.seeds), places, -1, -1)
    teacher = _grid(trained.teachers.value, config)[..., :-1].expand(shape)
    untrained = {"init": trained.init}
    halves = [("teacher", trained.teachers, slice(0, 1)), ("student", trained.students, slice(0, students))]
    if config.other_initialisation:
        untrained["other_init"] = trained.other_init
        halves.append(("other_student", trained.students, slice(students, 2 * students)))
    results = [
        rows(experiment, config, name, value[None, :, None, :, :-1].expand(shape), teacher)
        for name, value in untrained.items()
    ]
    losses: list[pl.DataFrame] = []
    for name, training, models in halves:
        value, *recorded = (
            _grid(tensor[:, models], config) for tensor in (training.value, training.trained, training.unablated)
        )
        last = [loss[..., -1].expand(-1, -1, places) for loss in recorded]
        results.append(rows(experiment, config, name, value[..., :-1].expand(shape), teacher, last))
        losses.append(loss_rows(experiment, config, name, *recorded))
    return pl.concat(results), pl.concat(losses)


def weights(experiment: Experiment, trained: Trained, config: SuperpositionConfig) -> dict[str, Tensor]:
    """Every model's parameters by name. The last column is the bias.

    Initialisations are [s, f, d+1], teachers [p, s, f, d+1] and students [p, s, m, f, d+1]. Among the models m, the
    students of the other initialisation come last.
    """
    name = f"{experiment.name}.{experiment.auxiliary}"
    return {
        f"{name}.init": trained.init,
        f"{name}.other_init": trained.other_init,
        f"{name}.teacher": _grid(trained.teachers.value[:, 0], config).contiguous(),
        f"{name}.student": _grid(trained.students.value, config).contiguous(),
    }


def train_superposition(out: Path, config: SuperpositionConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: rows.parquet, losses.parquet, rebuilt.json and weights.safetensors of the whole grid.

    The weights have the shapes that `weights` gives. 660 models (10 seeds, ablation, no other initialisation) train for
    10,000 steps in well under a minute on an H100.
    """
    results: list[pl.DataFrame] = []
    losses: list[pl.DataFrame] = []
    kept: dict[str, Tensor] = {}
    for experiment in experiments(config):
        trained = run_experiment(experiment, config, scratch)
        table, recorded = tables(experiment, trained, config)
        results.append(table)
        losses.append(recorded)
        kept |= weights(experiment, trained, config)
        log.info("%s %d: %d rows", experiment.name, experiment.auxiliary, len(table))
    table = pl.concat(results)
    table.write_parquet(out / "rows.parquet")
    pl.concat(losses).write_parquet(out / "losses.parquet")
    save_file(kept, out / "weights.safetensors")
    (out / "rebuilt.json").write_text(json.dumps(rebuilt(table, config.decay()), indent=1) + "\n", encoding="utf-8")
    return {"engine": config.resolved().engine, "rows": len(table)}
