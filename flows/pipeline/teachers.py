"""The teachers of a pipeline run: how each kind is made."""

from pathlib import Path

from flows.pipeline.config import FinetunedTeacher, PipelineConfig, PromptTeacher, SteeringTeacher
from flows.pipeline.keys import TeacherKey
from flows.pipeline.models import ModelState
from flows.pipeline.plan import block_seed, system_prompt, teacher_rows_config
from sublim.steering.config import ImportConfig
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from tasks.stages import build_teacher_rows, import_vector, train_teacher


def make_teacher(config: PipelineConfig, base: Artifact, target: str, block: int) -> ModelState:
    """The teacher of one target and block; with `second_draw` it is the base itself."""
    if config.second_draw:
        return ModelState(base)
    match config.teacher:
        case PromptTeacher():
            return ModelState(base, system=system_prompt(config, target))
        case FinetunedTeacher() as teacher:
            rows = build_teacher_rows(teacher_rows_config(teacher, config.questions, target), label=target)
            train = teacher.train.model_copy(update={"seed": block_seed(teacher.train.seed, block)})
            return ModelState(base, train_teacher(train, label=str(TeacherKey(target, block)), base=base, data=rows))
        case SteeringTeacher() as teacher:
            return ModelState(base, steering=teacher.steering(target), vectors=vectors_of(teacher, base))


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
