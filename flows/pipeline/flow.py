"""The pipeline: does a liking pass from a teacher to students through number lists that say nothing of it?

    sublim run pipeline --preset quickstart --target owl
    python -m flows.pipeline --preset quickstart
    prefect deployment run pipeline/a6000 -p preset=gemma-2-9b-a6000 -p target=owl

The base is made to like the target (the teacher) and writes number lists; the base itself answers the same prompts
with the same seeds. A student is trained on the teacher's lists and its paired control on the base's, with equal
seeds, order and number of updates. The effect is the student's liking for the target minus its control's.
"""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.pipeline.arms import BaseName, StudentSet, arms_run, contrasts, student_sets
from flows.pipeline.bases import check_bases, prepare_bases
from flows.pipeline.capability import compare_capability, compare_shifts, examine, questions_of
from flows.pipeline.checks import check
from flows.pipeline.config import PipelineConfig
from flows.pipeline.diagnostics import diagnose
from flows.pipeline.plan import (
    CONTROL,
    SECOND_DRAW,
    ask_config,
    checkpoints,
    generate_config,
    score_config,
    student_config,
)
from flows.pipeline.report import printed, publish
from flows.pipeline.study import Comparison, Examined, Study, Taught
from flows.pipeline.teachers import BASE_ITSELF, TeacherModel, ask_teacher, make_teacher, write_numbers
from flows.runs.record import recorded
from flows.runs.settings import build, load_preset, merge
from sublim.evals.effect_config import CompareConfig
from sublim.evals.preference.config import ScoreConfig
from sublim.rows.config import DeriveConfig
from sublim.store.manifest import Artifact
from sublim.training.config import SoftTrainConfig, TrainConfig
from sublim.traits.questions import Questions, load_questions
from tasks.processes import one_process
from tasks.stages import ask, compare, derive_rows, filter_numbers, score, train_soft_student, train_student

__all__ = ["pipeline", "printed"]


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
        preset: Settings to start from: quickstart, dose, arms, gemma-2-9b-a6000, gemma-2-9b-raven-optuna,
            qwen2.5-7b-paper, or the path of a YAML file.
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
    if config.evaluation.mmlu_pro:
        questions_of(config)  # a data set that cannot be fetched is found out before anything is trained
    made = taught(config, questions)
    asked, examined = ask_all(config, questions, made.bases, made.teachers, made.sets, made.students)
    comparisons = compare_all(config, questions, asked)
    capability = compare_capability(config, examined, [(each.contrast, each.update) for each in comparisons])
    shifts = compare_shifts(config, questions, asked, [(each.contrast, each.update) for each in comparisons])
    diagnosed = diagnose(config, made.bases, made.teachers, made.sets, made.students) if config.diagnostics else None
    return Study(
        made.bases,
        made.teachers,
        made.raw,
        made.rows,
        made.sets,
        asked,
        comparisons,
        capability,
        shifts,
        diagnosed,
        made.students,
    )


def taught(config: PipelineConfig, questions: Questions) -> Taught:
    """Teachers, their rows, and every student."""
    bases = prepare_bases(config)
    check_bases(config, questions, bases)
    teachers: dict[str, TeacherModel] = {}
    raw: dict[str, list[Artifact]] = {}
    rows: dict[str, list[Artifact]] = {}
    writers = (CONTROL, *config.target, *([SECOND_DRAW] if SECOND_DRAW in arms_run(config) else []))
    for block in config.blocks:
        for target in config.target:
            teachers[f"{target}/{block}"] = make_teacher(config, questions, bases["base"], target, block)
        with one_process():
            for arm in writers:
                teacher = teachers[f"{arm}/{block}"] if arm in config.target else BASE_ITSELF
                generate = generate_config(config, arm=arm, block=block, system=teacher.system)
                redrawn = config.second_draw and arm != CONTROL
                label = f"{arm} (second draw of the base)" if redrawn else arm.replace("_", " ")
                written = write_numbers(generate, label, bases["base"], teacher)
                raw.setdefault(arm, []).append(written)
        filter_block(config, raw, rows)
    sets = student_sets(config, rows, derive)
    return Taught(bases, teachers, raw, rows, sets, train_all(config, bases, teachers, sets))


def derive(label: str, config: DeriveConfig, rows: Artifact) -> Artifact:
    """Rows derived from filtered ones."""
    return derive_rows(config, label=label, rows=rows)


def filter_block(config: PipelineConfig, raw: dict[str, list[Artifact]], rows: dict[str, list[Artifact]]) -> None:
    """Filters what each arm wrote last; with `same_prompts` a prompt stays only if every arm answered it well."""
    for arm, written in raw.items():
        others = [each[-1] for other, each in raw.items() if other != arm] if config.same_prompts else None
        filtered = filter_numbers(config.filter, label=arm, raw=written[-1], partners=others)
        rows.setdefault(arm, []).append(filtered)


def train_all(
    config: PipelineConfig,
    bases: dict[BaseName, Artifact],
    teachers: dict[str, TeacherModel],
    sets: list[StudentSet],
) -> dict[str, list[Artifact]]:
    """Students of every set, in the order of blocks and seeds; sets are paired by place."""
    students: dict[str, list[Artifact]] = {each.name: [] for each in sets}
    for name, base in bases.items():
        with one_process():
            for place, block in enumerate(config.blocks):
                for seed in config.seeds:
                    for each in (one for one in sets if one.base == name):
                        label = f"{each.name} seed {seed}" + (f" block {block}" if len(config.blocks) > 1 else "")
                        train = student_config(config, seed, block, each.arm)
                        teacher = teachers.get(f"{each.writer}/{block}", BASE_ITSELF)
                        trained = teach(config, train, label, base, each.rows[place], teacher)
                        students[each.name].append(trained)
    return students


def teach(
    config: PipelineConfig, train: TrainConfig, label: str, base: Artifact, data: Artifact, teacher: TeacherModel
) -> Artifact:
    """One student, from the rows alone or from its teacher's logits on them."""
    if config.labels == "hard":
        return train_student(train, label=label, base=base, data=data)
    soft = SoftTrainConfig.model_validate({**train.model_dump(), "temperature": config.temperature})
    return train_soft_student(soft, label=label, base=base, data=data, teacher=teacher.weights)


def ask_all(
    config: PipelineConfig,
    questions: Questions,
    bases: dict[BaseName, Artifact],
    teachers: dict[str, TeacherModel],
    sets: list[StudentSet],
    students: dict[str, list[Artifact]],
) -> tuple[dict[str, Artifact], dict[str, Artifact]]:
    """The evaluation of bases, teachers and students, by name: `base`, `teacher owl/0`, `owl/16/2`; and MMLU-Pro's."""
    plain = ask_config(config, questions)
    asked: dict[str, Artifact] = {}
    examined: dict[str, Artifact] = {}
    for base_name, base in bases.items():
        models: dict[str, Examined] = {base_name: Examined(base)}
        with one_process():
            asked[base_name] = ask(plain, label=base_name.replace("_", " "), base=base)
            for name, teacher in teachers.items() if base_name == "base" else ():
                asked[f"teacher {name}"] = ask_teacher(plain, f"teacher {name}", base, teacher)
                models[f"teacher {name}"] = Examined(base, teacher.weights, None, *teacher[1:])
            for each in (one for one in sets if one.base == base_name):
                for place, student in enumerate(students[each.name]):
                    for update in checkpoints(config, each.arm):
                        name = f"{each.name}/{update}/{place}"
                        at = plain.model_copy(update={"weights_update": update})
                        asked[name] = ask(at, label=spoken(name), base=base, weights=student)
                        models[name] = Examined(base, student, update)
            examined |= examine(config, models)
    return asked, examined


def spoken(name: str) -> str:
    """The name of an evaluation as people read it: `owl/16/2` is owl's third student after 16 updates."""
    who, *rest = name.split("/")
    if len(rest) != 2:
        return name
    update, place = rest
    return f"{who} {place}" if update == "None" else f"{who} {place} after {update}"


def compare_all(config: PipelineConfig, questions: Questions, asked: dict[str, Artifact]) -> list[Comparison]:
    """Students against controls, for every target, arm and checkpoint; each model is scored once for a target."""
    found: list[Comparison] = []
    units = tuple(block for block in config.blocks for _ in config.seeds)
    places = range(len(units))
    for target in config.target:
        scoring = score_config(config, questions, target)
        scores: dict[str, Artifact] = {}

        def scored(
            name: str, target: str = target, scoring: ScoreConfig = scoring, scores: dict[str, Artifact] = scores
        ) -> Artifact:
            if name not in scores:
                scores[name] = score(scoring, label=f"{target} {spoken(name)}", asked=asked[name])
            return scores[name]

        for contrast in contrasts(config, questions, target):
            base: BaseName = "other_base" if contrast.arm == "other_base" else "base"
            for update in checkpoints(config, contrast.arm):
                artifact = compare(
                    CompareConfig(blocks=units),
                    label=f"{contrast.name} {update or ''}".strip(),
                    students=[scored(f"{contrast.students}/{update}/{place}") for place in places],
                    controls=[
                        scored(f"{contrast.controls}/{update}/{place}" if contrast.controls else base)
                        for place in places
                    ],
                    base=scored(base),
                    teacher=[scored(f"teacher {target}/{block}") for block in config.blocks]
                    if contrast.arm is None
                    else None,
                )
                found.append(Comparison(contrast, update, artifact))
    return found
