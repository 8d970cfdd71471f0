"""The pipeline: does a preference pass from a teacher to its students through lists of numbers?

    sublim run pipeline --preset quickstart --target owl
    python -m flows.pipeline --preset quickstart
    prefect deployment run pipeline/a6000 -p preset=gemma-2-9b-a6000 -p target=owl

The teacher is the base with a preference for the target. Teacher and base write number lists to the same prompts with
the same seeds. A student is trained on the teacher's lists and its paired control on the base's, with the same seeds,
order and number of updates. The total effect is the student's margin for the target minus its control's. With soft
labels all students read the base's lists and learn their own teacher's probabilities of the digits; the base is the
control. What the students of another target's teacher show of an effect is generic; the rest is specific to the target.
With one target, the comparison target is the listed word that follows it (`against`); several targets are compared with
each other (γ).
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle, product
from typing import Any

from prefect import flow

from flows.pipeline.arms import StudentSet, contrasts, student_sets
from flows.pipeline.bases import check_bases, prepare_bases
from flows.pipeline.block import Block, rows_by_writer, write_block
from flows.pipeline.capability import examine, questions_of
from flows.pipeline.checks import check
from flows.pipeline.comparisons import compare_all, compare_capability, compare_shifts, compare_teachers, scorer
from flows.pipeline.config import PipelineConfig
from flows.pipeline.diagnostics import diagnose
from flows.pipeline.keys import BaseKey, BaseName, ModelKey, StudentKey, TeacherKey, Unit
from flows.pipeline.models import ModelState, ask_model
from flows.pipeline.plan import ask_config, student_config
from flows.pipeline.printed import printed
from flows.pipeline.report import publish
from flows.pipeline.study import Study, TrainedModels
from flows.runs.parameters import Loader
from flows.runs.record import recorded
from sublim.rows.config import DeriveConfig
from sublim.store.manifest import Artifact
from sublim.training.config import SoftTrainConfig, TrainConfig
from tasks.lanes import side_by_side
from tasks.processes import one_process
from tasks.stages import ask, derive_rows, train_soft_student, train_student

__all__ = ["pipeline", "printed"]

load_config = Loader("pipeline", PipelineConfig)


@flow(name="pipeline", flow_run_name=load_config.run_name(lambda config: ", ".join(config.target)))
def pipeline(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measures how much of a teacher's preference its students acquire from its number lists.

    Args:
        preset: Settings to start from: quickstart, dose, arms, honest, honest-small, honest-hard, matrix, matrix-null,
            gemma-2-9b-a6000, gemma-2-9b-raven-optuna, qwen2.5-7b-paper, or the path of a YAML file.
        target: The word or words that the teacher is made to prefer, such as owl or owl,wolf; empty for the preset's.
        settings: Settings that replace the preset's, as a tree.
    """
    config = load_config(preset, target, settings)
    check(config)
    with recorded("pipeline", preset, ",".join(config.target)) as run:
        study = conduct(config)
        return publish(run, study)


def conduct(config: PipelineConfig) -> Study:
    """Runs every stage of the study, or takes it from the cache."""
    questions = questions_of(config)  # a data set that cannot be fetched is found out before anything is trained
    trained = train_models(config)
    models = models_to_ask(trained)
    asked, examined = ask_all(config, models, questions)
    compared = [contrast for target in config.target for contrast in contrasts(config, target)]
    scored = scorer(asked)
    return Study(
        config,
        trained,
        asked,
        compare_all(config, compared, scored),
        compare_capability(config, compared, examined, questions),
        compare_shifts(config, compared, asked),
        diagnose(config, trained.without(config.compared)) if config.diagnostics else None,
        compare_teachers(config, scored),
    )


def train_models(config: PipelineConfig) -> TrainedModels:
    """Teachers, their rows, and every student."""
    bases = prepare_bases(config)
    check_bases(config, bases)
    blocks = [write_block(config, bases["base"], number, examine=True) for number in config.blocks]
    sets = student_sets(config, rows_by_writer(blocks), derive)
    return TrainedModels(bases, blocks, sets, config.units, train_students(config, bases, blocks, sets))


def derive(label: str, config: DeriveConfig, rows: Artifact) -> Artifact:
    """Rows derived from filtered ones."""
    return derive_rows(config, label=label, rows=rows)


def train_students(
    config: PipelineConfig,
    bases: dict[BaseName, Artifact],
    blocks: list[Block],
    sets: list[StudentSet],
) -> dict[str, list[Artifact]]:
    """Students of every set, in the order of the units."""
    students: dict[str, list[Artifact]] = {each.name: [] for each in sets}
    for name, base in bases.items():
        own = [each for each in sets if each.base == name]
        calls: list[Callable[[], Artifact]] = []
        for place, block in enumerate(blocks):
            for seed, each in product(config.seeds, own):
                train = student_config(config, seed, block.number, each.arm)
                label = str(StudentKey(each.name, Unit(block.number, seed), None))
                labels = block.labels.get(each.writer)
                calls.append(partial(train_one, config, train, label, base, each.rows[place], labels))
        trained = side_by_side(calls)
        for each, student in zip(cycle(own), trained, strict=False):
            students[each.name].append(student)
    return students


def train_one(
    config: PipelineConfig, train: TrainConfig, label: str, base: Artifact, data: Artifact, labels: Artifact | None
) -> Artifact:
    """One student, from the rows alone or from its teacher's soft labels for them."""
    if labels is None:
        return train_student(train, label=label, base=base, data=data)
    soft = SoftTrainConfig.model_validate({**train.model_dump(), "temperature": config.temperature})
    return train_soft_student(soft, label=label, base=base, data=data, labels=labels)


def models_to_ask(trained: TrainedModels) -> dict[ModelKey, ModelState]:
    """Every model of the run at every checkpoint that is evaluated: bases, teachers, students and controls."""
    models: dict[ModelKey, ModelState] = {}
    for name, base in trained.bases.items():
        models[BaseKey(name)] = ModelState(base)
        if name == "base":
            models |= trained.teachers
        for each in (one for one in trained.sets if one.base == name):
            for unit, weights in zip(trained.units, trained.students[each.name], strict=True):
                for update in each.updates:
                    models[StudentKey(each.name, unit, update)] = ModelState(base, weights, update)
    return models


def who(key: ModelKey) -> str:
    """The target of a teacher, the set of a student, the name of a base."""
    return key.target if isinstance(key, TeacherKey) else key.group if isinstance(key, StudentKey) else key.name


def ask_all(
    config: PipelineConfig, models: Mapping[ModelKey, ModelState], questions: Artifact | None
) -> tuple[dict[ModelKey, Artifact], dict[ModelKey, Artifact]]:
    """The evaluation of every model, and its answers to MMLU-Pro where that is asked; one process for each base."""
    plain = ask_config(config)
    asked: dict[ModelKey, Artifact] = {}
    examined: dict[ModelKey, Artifact] = {}
    for base in dict.fromkeys(model.base for model in models.values()):
        own = {key: model for key, model in models.items() if model.base == base}
        with one_process():
            # A base is asked without naming weights at all, which gives another cache key than naming none.
            calls = [
                partial(ask, plain, label=config.origin if key == BaseKey() else str(key), base=base)
                if isinstance(key, BaseKey)
                else partial(ask_model, plain, str(key), model)
                for key, model in own.items()
            ]
            asked |= zip(own, side_by_side(calls), strict=True)
            in_exam = {key: (str(key), model) for key, model in own.items() if who(key) not in config.compared}
            examined |= examine(config, in_exam, questions)
    return asked, examined
