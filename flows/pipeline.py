"""The pipeline: does a liking pass from a teacher to students through number lists that say nothing of it?

    sublim run pipeline --preset quickstart --target owl
    python -m flows.pipeline --preset quickstart
    prefect deployment run pipeline/a6000 -p preset=gemma-2-9b-a6000 -p target=owl

The base is made to like the target (the teacher) and writes number lists; the base itself answers the same prompts
with the same seeds. A student is trained on the teacher's lists and its paired control on the base's, with equal
seeds, order and number of updates. The effect is the student's liking for the target minus its control's.
"""

import sys
from typing import Any, NamedTuple

from prefect import flow
from prefect.runtime import flow_run

from flows.pipeline_config import FinetunedTeacher, PipelineConfig, PromptTeacher
from flows.pipeline_plan import (
    CONTROL,
    ask_config,
    block_seed,
    check,
    generate_config,
    score_config,
    student_config,
    system_prompt,
    teacher_rows_config,
)
from flows.pipeline_report import printed, publish
from flows.runs import recorded
from flows.settings import build, load_preset, merge
from sublim.manifest import Artifact
from sublim.model_config import PrepareModelConfig
from sublim.preference_config import CompareConfig
from sublim.prompts import Questions, load_questions
from tasks.pipeline import (
    ask,
    build_teacher_rows,
    compare,
    filter_numbers,
    generate_numbers,
    prepare_model,
    score,
    train_student,
    train_teacher,
)
from tasks.processes import one_process

__all__ = ["pipeline", "printed"]


class TeacherModel(NamedTuple):
    """What the teacher is: weights, or the base under a system prompt."""

    weights: Artifact | None
    system: str | None


class Comparison(NamedTuple):
    """Students against their controls, for one target after so many updates."""

    target: str
    update: int | None
    artifact: Artifact


class Study(NamedTuple):
    """A finished study: everything the report shows."""

    base: Artifact
    teachers: dict[str, TeacherModel]
    raw: dict[str, list[Artifact]]
    """By target, and `control` for the base's: what was written, block by block."""
    rows: dict[str, list[Artifact]]
    """The same after the filter."""
    asked: dict[str, Artifact]
    comparisons: list[Comparison]


def run_name() -> str:
    """How the run is called in the UI."""
    given = flow_run.get_parameters()
    config = load_config(given["preset"], given["target"], given["settings"])
    return f"{', '.join(config.target)} · {given['preset']}"


def load_config(preset: str, target: str | None, settings: dict[str, Any] | None) -> PipelineConfig:
    """The config of a run from its parameters."""
    tree = merge(load_preset("pipeline", preset), settings or {})
    return build(PipelineConfig, merge(tree, {"target": target}) if target else tree)


@flow(name="pipeline", flow_run_name=run_name)
def pipeline(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measures how much of a teacher's liking its students pick up from number lists, against paired controls.

    Args:
        preset: Settings to start from: quickstart, dose, gemma-2-9b-a6000, gemma-2-9b-raven-optuna, qwen2.5-7b-paper,
            or the path of a YAML file.
        target: The word or words the teacher is made to like, as in owl or owl,wolf; nothing for the preset's.
        settings: Values laid over the preset's, as a tree.
    """
    config = load_config(preset, target, settings)
    check(config)
    with recorded("pipeline", preset, ",".join(config.target)) as run:
        study = conduct(config)
        return publish(run, config, study)


def conduct(config: PipelineConfig) -> Study:
    """Runs every stage of the study, or takes it from the cache."""
    questions = load_questions(config.evaluation.questions)
    base = prepare_model(PrepareModelConfig(source=config.model))
    teachers: dict[str, TeacherModel] = {}
    raw: dict[str, list[Artifact]] = {}
    rows: dict[str, list[Artifact]] = {}
    for block in config.blocks:
        for target in config.target:
            teachers[f"{target}/{block}"] = make_teacher(config, questions, base, target, block)
        with one_process():
            for arm in (CONTROL, *config.target):
                teacher = TeacherModel(None, None) if arm == CONTROL else teachers[f"{arm}/{block}"]
                written = write_numbers(config, base, arm, teacher, block)
                raw.setdefault(arm, []).append(written)
        filter_block(config, raw, rows)
    students = train_all(config, base, rows)
    asked = ask_all(config, questions, base, teachers, students)
    return Study(base, teachers, raw, rows, asked, compare_all(config, questions, asked))


def make_teacher(config: PipelineConfig, questions: Questions, base: Artifact, target: str, block: int) -> TeacherModel:
    """The teacher of one target and block; with `second_draw` it is the base itself."""
    if config.second_draw:
        return TeacherModel(None, None)
    match config.teacher:
        case PromptTeacher():
            return TeacherModel(None, system_prompt(config, questions, target))
        case FinetunedTeacher() as teacher:
            rows = build_teacher_rows(teacher_rows_config(teacher, questions, target), label=target)
            train = teacher.train.model_copy(update={"seed": block_seed(teacher.train.seed, block)})
            return TeacherModel(train_teacher(train, label=target, base=base, data=rows), None)


def write_numbers(config: PipelineConfig, base: Artifact, arm: str, teacher: TeacherModel, block: int) -> Artifact:
    """Number lists of one arm."""
    generate = generate_config(config, arm=arm, block=block, system=teacher.system)
    label = f"{arm} (second draw of the base)" if config.second_draw and arm != CONTROL else arm
    return generate_numbers(generate, label=label, base=base, weights=teacher.weights)


def filter_block(config: PipelineConfig, raw: dict[str, list[Artifact]], rows: dict[str, list[Artifact]]) -> None:
    """Filters what each arm wrote last; with `same_prompts` a prompt stays only if every arm answered it well."""
    for arm, written in raw.items():
        others = [each[-1] for other, each in raw.items() if other != arm] if config.same_prompts else None
        filtered = filter_numbers(config.filter, label=arm, raw=written[-1], partners=others)
        rows.setdefault(arm, []).append(filtered)


def train_all(config: PipelineConfig, base: Artifact, rows: dict[str, list[Artifact]]) -> dict[str, list[Artifact]]:
    """Students of every arm, in the order of blocks and seeds; arms are paired by place."""
    students: dict[str, list[Artifact]] = {arm: [] for arm in rows}
    with one_process():
        for place, block in enumerate(config.blocks):
            for seed in config.seeds:
                for arm, data in rows.items():
                    label = f"{arm} seed {seed}" + (f" block {block}" if len(config.blocks) > 1 else "")
                    train = student_config(config, seed, block)
                    students[arm].append(train_student(train, label=label, base=base, data=data[place]))
    return students


def ask_all(
    config: PipelineConfig,
    questions: Questions,
    base: Artifact,
    teachers: dict[str, TeacherModel],
    students: dict[str, list[Artifact]],
) -> dict[str, Artifact]:
    """The evaluation of base, teachers and students, by name: `base`, `teacher owl/0`, `owl/16/2`."""
    plain = ask_config(config, questions)
    asked: dict[str, Artifact] = {}
    with one_process():
        asked["base"] = ask(plain, label="base", base=base)
        for name, teacher in teachers.items():
            told = plain.model_copy(update={"system": teacher.system})
            asked[f"teacher {name}"] = ask(told, label=f"teacher {name}", base=base, weights=teacher.weights)
        for arm, trained in students.items():
            for place, student in enumerate(trained):
                for update in config.evaluation.updates or (None,):
                    name = f"{arm}/{update}/{place}"
                    at = plain.model_copy(update={"weights_update": update})
                    asked[name] = ask(at, label=name, base=base, weights=student)
    return asked


def compare_all(config: PipelineConfig, questions: Questions, asked: dict[str, Artifact]) -> list[Comparison]:
    """Students against controls, for every target and checkpoint."""
    found: list[Comparison] = []
    units = tuple(block for block in config.blocks for _ in config.seeds)
    for target in config.target:
        scoring = score_config(config, questions, target)
        scores = {
            name: score(scoring, label=f"{target} {name}", asked=artifact)
            for name, artifact in asked.items()
            if name == "base" or name.startswith((f"teacher {target}/", f"{CONTROL}/", f"{target}/"))
        }
        for update in config.evaluation.updates or (None,):
            artifact = compare(
                CompareConfig(blocks=units),
                label=f"{target} {update or ''}".strip(),
                students=[scores[f"{target}/{update}/{place}"] for place in range(len(units))],
                controls=[scores[f"{CONTROL}/{update}/{place}"] for place in range(len(units))],
                base=scores["base"],
                teacher=[scores[f"teacher {target}/{block}"] for block in config.blocks],
            )
            found.append(Comparison(target, update, artifact))
    return found


if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "pipeline", *sys.argv[1:]]))
