"""Diagnostics of a pipeline run, on its first block: what students learned of the carrier, where their weights moved,
and at which tokens the teacher's likeliest choice is not the base's."""

from flows.pipeline.block import filter_together
from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import BaseKey, ModelKey, StudentKey
from flows.pipeline.models import ModelState, write_numbers
from flows.pipeline.plan import CONTROL, keep_all, unseen_config
from flows.pipeline.study import Diagnosed, TrainedModels
from sublim.diagnostics.config import DivergenceConfig, ShiftConfig, UnseenLossConfig
from sublim.inference.config import HfBackend
from sublim.store.manifest import Artifact
from tasks.processes import one_process
from tasks.stages import find_divergence, measure_losses, measure_shift


def diagnose(config: PipelineConfig, trained: TrainedModels) -> Diagnosed:
    """Runs the diagnostics that were asked for."""
    base = trained.bases["base"]
    teachers = trained.blocks[0].teachers
    found = Diagnosed({}, {}, {}, {})
    unseen = unseen_rows(config, base, teachers) if {"losses", "divergence"} & {*config.diagnostics} else {}
    if "losses" in config.diagnostics:
        found.losses.update(all_losses(config, trained, unseen))
    for target, teacher in teachers.items():
        if "shift" in config.diagnostics:
            if teacher.weights is None:
                found.missing[f"shift {target}"] = "the teacher has the base's own weights"
            else:
                first = {arm: trained.students[arm][: len(config.seeds)] for arm in (target, CONTROL)}
                pairs = {f"{arm}/{place}": each for arm, group in first.items() for place, each in enumerate(group)}
                found.shifts[target] = measure_shift(
                    ShiftConfig(), label=target, base=base, teacher=teacher.weights, students=pairs
                )
        if "divergence" in config.diagnostics:
            if not isinstance(config.backend, HfBackend):
                found.missing[f"divergence {target}"] = f"the backend {config.backend.kind} gives no logits"
            elif teacher.steering is not None:
                found.missing[f"divergence {target}"] = "a steered teacher's logits are not read"
            else:
                chosen = DivergenceConfig(backend=config.backend, teacher_system=teacher.system)
                found.divergence[target] = find_divergence(
                    chosen, label=target, base=base, data=unseen[target], teacher=teacher.weights
                )
    return found


def unseen_rows(config: PipelineConfig, base: Artifact, teachers: dict[str, ModelState]) -> dict[str, Artifact]:
    """Rows of each teacher and of the base that nobody trains on, to prompts that nobody has seen."""
    with one_process():
        raw = {
            arm: write_numbers(unseen_config(config, arm=arm, block=config.blocks[0]), f"{arm} unseen", model)
            for arm, model in {**teachers, CONTROL: ModelState(base)}.items()
        }
    return filter_together(config.model_copy(update={"filter": keep_all(config)}), raw, " unseen")


def all_losses(config: PipelineConfig, trained: TrainedModels, unseen: dict[str, Artifact]) -> dict[ModelKey, Artifact]:
    """Losses on the unseen rows of every teacher and of the base: of the main arm's students at every checkpoint, of
    the other arms' at their last, of the bases they started from, and of trained teachers."""
    plain, first = UnseenLossConfig(backend=config.backend), config.blocks[0]
    found: dict[ModelKey, Artifact] = {}
    for name, base in trained.bases.items():

        def measured(key: ModelKey, weights: Artifact | None, update: int | None = None, base: Artifact = base) -> None:
            at = plain.model_copy(update={"weights_update": update})
            found[key] = measure_losses(at, label=str(key), base=base, data=unseen, weights=weights)

        with one_process():
            measured(BaseKey(name), None)
            for each in (one for one in trained.sets if one.base == name):
                for unit, weights in zip(trained.units, trained.students[each.name], strict=True):
                    for update in each.updates if each.arm is None else each.updates[-1:]:
                        if unit.block == first:
                            measured(StudentKey(each.name, unit, update), weights, update)
            for key, teacher in trained.teachers.items() if name == "base" else ():
                if teacher.weights is not None and key.block == first:
                    measured(key, teacher.weights)
    return found
