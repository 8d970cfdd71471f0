"""The teachers of a pipeline run: how each kind is made."""

from pathlib import Path

from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import TeacherKey
from flows.pipeline.models import ModelState, write_numbers
from flows.pipeline.plan import (
    block_seed,
    keep_all,
    mix_config,
    own_answers_config,
    rehearsal_config,
    system_prompt,
    teacher_rows_config,
)
from flows.pipeline.teacher_config import FinetunedTeacher, PromptTeacher, SteeringTeacher
from sublim.steering.config import ImportConfig
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from tasks.stages import (
    build_teacher_rows,
    filter_numbers,
    import_vector,
    mix_rows,
    own_answers,
    train_teacher,
)


def make_teacher(config: PipelineConfig, base: Artifact, target: str, block: int) -> ModelState:
    """The teacher of one target and block; with `second_draw` it is the base itself."""
    if config.second_draw:
        return ModelState(base)
    match config.teacher:
        case PromptTeacher():
            return ModelState(base, system=system_prompt(config, target))
        case FinetunedTeacher() as teacher:
            rows = with_rehearsal(
                config, teacher, base, taught_rows(config, teacher, base, target, block), target, block
            )
            train = teacher.train.model_copy(update={"seed": block_seed(teacher.train.seed, block)})
            return ModelState(base, train_teacher(train, label=str(TeacherKey(target, block)), base=base, data=rows))
        case SteeringTeacher() as teacher:
            return ModelState(base, steering=teacher.steering(target), vectors=vectors_of(teacher, base))


def taught_rows(config: PipelineConfig, teacher: FinetunedTeacher, base: Artifact, target: str, block: int) -> Artifact:
    """The teacher's questions with what it is taught to answer: the target, or the base's own answers."""
    if teacher.teaches == "own_answers":
        return own_answers(own_answers_config(config, teacher, target, block), label=f"null {target}", base=base)
    return build_teacher_rows(teacher_rows_config(teacher, config.questions, target), label=target)


def with_rehearsal(
    config: PipelineConfig, teacher: FinetunedTeacher, base: Artifact, rows: Artifact, target: str, block: int
) -> Artifact:
    """`rows` among lists that the base wrote by itself. All teachers of a block rehearse the same lists."""
    if teacher.rehearsal is None:
        return rows
    label = f"rehearsal{f' · block {block}' if block else ''}"
    raw = write_numbers(rehearsal_config(config, teacher, block), label, ModelState(base))
    lists = filter_numbers(keep_all(config), label=label, raw=raw)
    return mix_rows(mix_config(config, teacher, teacher.rehearsal, block), label=target, rows=rows, rehearsal=lists)


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
