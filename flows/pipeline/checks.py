"""Refusals before a pipeline runs: settings that contradict each other, this machine, the base or a vector."""

from pathlib import Path

from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import (
    ask_config,
    generate_config,
    rehearsal_config,
    score_config,
    soft_labels_config,
    start_rows_config,
    system_prompt,
    teacher_rows_config,
)
from flows.pipeline.teacher_config import FinetunedTeacher, SteeringTeacher
from flows.runs.machine import check_machine, check_model
from sublim.core.errors import UserError
from sublim.core.hardware import no_flash
from sublim.inference.config import Backend, HfBackend, OpenAIBackend, VllmBackend
from sublim.training.config import no_unsloth


def check_backend(backend: Backend) -> None:
    """Raises UserError for a backend that cannot run students here."""
    if isinstance(backend, OpenAIBackend):
        raise UserError(
            "backend: a server cannot load the weights that students are trained to: take backend.kind=hf or vllm "
            "(`sublim run evaluate` asks a model behind a server)"
        )
    if isinstance(backend, HfBackend) and backend.attention == "flash_attention_2":
        _check_flash("backend", backend.resolved().dtype)


def check_trainings(config: PipelineConfig) -> None:
    """Raises UserError for a training of the run that this machine cannot compute."""
    trainings = {"student": config.student}
    if isinstance(config.teacher, FinetunedTeacher) and not config.second_draw:
        trainings["teacher.train"] = config.teacher.train
    if config.start:
        trainings["start.train"] = config.start.train
    for name, train in trainings.items():
        if train.trainer == "unsloth" and (why := no_unsloth()):
            raise UserError(f"{name}.trainer: unsloth cannot run here: {why}; or set it to trl")
        if train.attention == "flash_attention_2":
            _check_flash(name, train.resolved().dtype)


def _check_flash(name: str, dtype: str) -> None:
    if why := no_flash(dtype):
        raise UserError(f"{name}.attention: flash_attention_2 cannot run here: {why}; or set it to auto")


def check_counts(config: PipelineConfig) -> None:
    """Raises UserError for rows that no filter could leave, and for checkpoints that no student reaches."""
    answers, wanted = config.carrier.prompts * config.carrier.sampling.n, config.filter.held_out
    wanted += config.filter.keep or 1
    if answers < wanted:
        raise UserError(
            f"{answers:,} answers are drawn, {wanted:,} valid ones wanted: raise carrier.prompts or lower filter.keep"
        )
    last = config.student.updates
    if last is not None and (late := [update for update in config.evaluation.updates if update > last]):
        raise UserError(
            f"evaluation.updates has {late[0]} and students make {last} updates: raise student.updates or leave it out"
        )


def check_replaced(config: PipelineConfig) -> None:
    """Raises UserError for a setting that would have no effect, because another one takes its place."""
    if config.student.seed:
        raise UserError("student.seed has no effect: set seeds, each of which takes its place")
    if config.carrier.sampling.seed:
        raise UserError("carrier.sampling.seed has no effect: set carrier.seed, which takes its place")
    if config.evaluation.sampling.n > 1:
        raise UserError("evaluation.sampling.n has no effect: set evaluation.samples, which takes its place")


def check(config: PipelineConfig) -> None:
    """Raises UserError for whatever can be known to go wrong: the machine, the files, the words."""
    check_machine(config.gpu_memory_gib)
    check_backend(config.backend)
    check_trainings(config)
    check_counts(config)
    check_replaced(config)
    check_model(config.model)
    if config.start:
        start_rows_config(config, config.start)
    if "other_base" in config.arms:
        check_model(config.other_base)
        if config.other_base == config.model:
            raise UserError("other_base is the base itself: set other_base to another model or leave the arm out")
    if config.evaluation.mmlu_pro:
        config.evaluation.mmlu_pro.source.identity()
    if isinstance(config.teacher, SteeringTeacher):
        check_vectors(config, config.teacher)
    if config.labels == "soft":
        soft_labels_config(config, None)
    ask_config(config)
    for target in config.made:
        score_config(config, target)
        if isinstance(config.teacher, FinetunedTeacher):
            teacher_rows_config(config.teacher, config.questions, target)
            if config.teacher.rehearsal is not None:
                rehearsal_config(config, config.teacher, config.blocks[0])
        system_prompt(config, target)
        generate_config(config, arm=target, block=config.blocks[0])


def check_vectors(config: PipelineConfig, teacher: SteeringTeacher) -> None:
    """Raises UserError for vectors that are not there, and for what a steered teacher cannot do."""
    if not isinstance(config.backend, HfBackend | VllmBackend):
        raise UserError(f"the backend {config.backend.kind} cannot steer the pipeline's teacher: take backend.kind=hf")
    if len(config.made) > 1 and "{target}" not in teacher.vector:
        raise UserError(
            f"all targets' teachers would have the one vector {teacher.vector!r}: put {{target}} into teacher.vector, "
            "or run one target at a time"
        )
    if Path(teacher.vectors).suffix == ".safetensors" and not Path(teacher.vectors).expanduser().is_file():
        raise UserError(f"{teacher.vectors} is not there: give a safetensors file or the key of a stage's output")
