"""What a pipeline run cannot do on this machine or with these settings, told before its first stage begins."""

from flows.pipeline_config import FinetunedTeacher, PipelineConfig
from sublim.errors import UserError
from sublim.inference import Backend, HfBackend, OpenAIBackend
from sublim.training import TrainConfig, no_flash, no_unsloth


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
    for name, train in trainings.items():
        _check_training(name, train)


def _check_training(name: str, train: TrainConfig) -> None:
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
