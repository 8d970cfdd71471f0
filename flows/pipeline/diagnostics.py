"""Diagnostics of a pipeline run, on its first block: what students learned of the carrier, where their weights moved,
where teacher and base part."""

from typing import NamedTuple

from flows.pipeline.arms import BaseName, StudentSet
from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import CONTROL, checkpoints, unseen_config
from flows.pipeline.teachers import BASE_ITSELF, TeacherModel, write_numbers
from sublim.diagnostics.config import DivergenceConfig, LossConfig, ShiftConfig
from sublim.inference.config import HfBackend
from sublim.store.manifest import Artifact
from tasks.processes import one_process
from tasks.stages import filter_numbers, find_divergence, measure_losses, measure_shift


class Diagnosed(NamedTuple):
    """The diagnostics' artifacts; what could not be measured is missing, with its reason."""

    losses: dict[str, Artifact]
    """By model: `base`, `teacher owl`, `owl/16/2`."""
    shifts: dict[str, Artifact]
    """By target."""
    divergence: dict[str, Artifact]
    """By target."""
    missing: dict[str, str]
    """By diagnostic, perhaps with a target: why."""


def diagnose(
    config: PipelineConfig,
    bases: dict[BaseName, Artifact],
    teachers: dict[str, TeacherModel],
    sets: list[StudentSet],
    students: dict[str, list[Artifact]],
) -> Diagnosed:
    """Runs the diagnostics that were asked for."""
    first, base = config.blocks[0], bases["base"]
    own = {target: teachers[f"{target}/{first}"] for target in config.target}
    trained = {arm: students[arm][: len(config.seeds)] for arm in (*config.target, CONTROL)}
    found = Diagnosed({}, {}, {}, {})
    unseen = unseen_rows(config, base, own) if {"losses", "divergence"} & {*config.diagnostics} else {}
    if "losses" in config.diagnostics:
        found.losses.update(all_losses(config, bases, own, sets, students, unseen))
    for target, teacher in own.items():
        if "shift" in config.diagnostics:
            if teacher.weights is None:
                found.missing[f"shift {target}"] = "the teacher has the base's own weights"
            else:
                pairs = {f"{arm}/{i}": each for arm in (target, CONTROL) for i, each in enumerate(trained[arm])}
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


def unseen_rows(config: PipelineConfig, base: Artifact, teachers: dict[str, TeacherModel]) -> dict[str, Artifact]:
    """Rows of each teacher and of the base that nobody trains on, to prompts that nobody has seen."""
    models = {**teachers, CONTROL: BASE_ITSELF}
    with one_process():
        raw = {
            arm: write_numbers(
                unseen_config(config, arm=arm, block=config.blocks[0], system=model.system),
                f"{arm} unseen",
                base,
                model,
            )
            for arm, model in models.items()
        }
    keep_all = config.filter.model_copy(update={"keep": None, "held_out": 0})
    return {
        arm: filter_numbers(
            keep_all,
            label=f"{arm} unseen",
            raw=each,
            partners=[other for name, other in raw.items() if name != arm] if config.same_prompts else None,
        )
        for arm, each in raw.items()
    }


def all_losses(
    config: PipelineConfig,
    bases: dict[BaseName, Artifact],
    teachers: dict[str, TeacherModel],
    sets: list[StudentSet],
    students: dict[str, list[Artifact]],
    unseen: dict[str, Artifact],
) -> dict[str, Artifact]:
    """Every model's loss on the unseen rows of every teacher and of the base: of the main arm's students at every
    checkpoint, of the other arms' at their last, and of each base that students started from."""
    plain = LossConfig(backend=config.backend)
    found: dict[str, Artifact] = {}
    for base_name, base in bases.items():
        with one_process():
            found[base_name] = measure_losses(plain, label=base_name, base=base, data=unseen, weights=None)
            for each in (one for one in sets if one.base == base_name):
                updates = checkpoints(config, each.arm)
                for place, student in enumerate(students[each.name][: len(config.seeds)]):
                    for update in updates if each.arm is None else updates[-1:]:
                        name = f"{each.name}/{update}/{place}"
                        at = plain.model_copy(update={"weights_update": update})
                        found[name] = measure_losses(at, label=name, base=base, data=unseen, weights=student)
            for target, teacher in teachers.items() if base_name == "base" else ():
                if teacher.weights is not None:
                    label = f"teacher {target}"
                    found[label] = measure_losses(plain, label=label, base=base, data=unseen, weights=teacher.weights)
    return found
