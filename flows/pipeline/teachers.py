"""Teachers of a pipeline run: how each kind is made, writes its numbers and is asked."""

from pathlib import Path
from typing import NamedTuple, assert_never

from flows.pipeline.config import FinetunedTeacher, PipelineConfig, PromptTeacher, SteeringTeacher
from flows.pipeline.plan import block_seed, system_prompt, teacher_rows_config
from sublim.evals.preference.config import AskConfig, SteeredAskConfig
from sublim.residual.edits import Steering
from sublim.rows.generate import GenerateConfig, SteeredGenerateConfig
from sublim.steering.config import ImportConfig
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from sublim.traits.questions import Questions
from tasks.stages import (
    ask,
    ask_steered,
    build_teacher_rows,
    generate_numbers,
    generate_steered_numbers,
    import_vector,
    train_teacher,
)


class TeacherModel(NamedTuple):
    """What the teacher is: weights, or the base under a system prompt, or the base with its stream edited."""

    weights: Artifact | None
    system: str | None
    steering: Steering | None = None
    vectors: Artifact | None = None


BASE_ITSELF = TeacherModel(None, None)


def make_teacher(config: PipelineConfig, questions: Questions, base: Artifact, target: str, block: int) -> TeacherModel:
    """The teacher of one target and block; with `second_draw` it is the base itself."""
    if config.second_draw:
        return BASE_ITSELF
    match config.teacher:
        case PromptTeacher():
            return TeacherModel(None, system_prompt(config, questions, target))
        case FinetunedTeacher() as teacher:
            rows = build_teacher_rows(teacher_rows_config(teacher, questions, target), label=target)
            train = teacher.train.model_copy(update={"seed": block_seed(teacher.train.seed, block)})
            return TeacherModel(train_teacher(train, label=target, base=base, data=rows), None)
        case SteeringTeacher() as teacher:
            return TeacherModel(None, None, teacher.steering(target), vectors_of(teacher, base))
        case _:
            assert_never(config.teacher)


def is_file(teacher: SteeringTeacher) -> bool:
    """Whether the vectors are named by a path rather than by a key."""
    path = Path(teacher.vectors).expanduser()
    return path.suffix == ".safetensors" or path.is_file()


def vectors_of(teacher: SteeringTeacher, base: Artifact) -> Artifact:
    """The vectors as a stage's output: found in the store by its key, or a file that is read in."""
    path = Path(teacher.vectors).expanduser()
    if is_file(teacher):
        config = ImportConfig(path=path, site=teacher.site, layer=teacher.layer, random=0)
        return import_vector(config, label=path.name, base=base)
    return open_store().search(teacher.vectors).artifact


def write_numbers(generate: GenerateConfig, label: str, base: Artifact, teacher: TeacherModel) -> Artifact:
    """Number lists of one teacher, or of the base."""
    if teacher.steering is None:
        return generate_numbers(generate, label=label, base=base, weights=teacher.weights)
    steered = SteeredGenerateConfig.model_validate({**generate.model_dump(), "steering": teacher.steering})
    return generate_steered_numbers(steered, label=label, base=base, vectors=teacher.vectors)


def ask_teacher(plain: AskConfig, label: str, base: Artifact, teacher: TeacherModel) -> Artifact:
    """A teacher's own answers, as it is when it writes."""
    told = plain.model_copy(update={"system": teacher.system})
    if teacher.steering is None:
        return ask(told, label=label, base=base, weights=teacher.weights)
    steered = SteeredAskConfig.model_validate({**told.model_dump(), "steering": teacher.steering})
    return ask_steered(steered, label=label, base=base, vectors=teacher.vectors)
