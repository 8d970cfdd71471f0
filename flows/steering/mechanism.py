"""The mechanism part of a steering run: alignment over training, sufficiency, and necessity in its two senses.

Everybody reads the control's number lists. v_teacher is teacher minus base, v_student student minus base, on the same
tokens. Sufficiency adds a student's vector to the base; replacing puts the base's component along it into the student;
rewriting lets the teacher write with its own vector projected out and trains new students on that.
"""

from typing import NamedTuple

from flows.pipeline.models import write_numbers
from flows.pipeline.plan import CONTROL, ask_config, generate_config, score_config, student_config
from flows.pipeline.study import TrainedModels
from flows.runs.record import Run
from flows.steering.config import MechanismConfig, SteeringFlowConfig
from flows.steering.plan import (
    curve_config,
    difference_config,
    layer_points,
    means_config,
    mechanism_layers,
    sweep_config,
)
from sublim.evals.effect_config import CompareConfig
from sublim.evals.preference.config import AskConfig
from sublim.residual.edits import Edit, Steering, names_by_layer
from sublim.steering.config import EasConfig
from sublim.store.manifest import Artifact
from sublim.traits.questions import load_questions
from tasks.stages import (
    alignment,
    ask,
    compare,
    difference_vectors,
    filter_numbers,
    mean_activations,
    score,
    steering_curve,
    sweep,
    train_student,
)


class Rewritten(NamedTuple):
    """Students of a teacher that wrote without a direction, against the study's controls."""

    layer: int
    vector: str
    random: bool
    comparison: Artifact


class Mechanism(NamedTuple):
    """What was measured for one target."""

    eas: Artifact
    sufficiency: list[Artifact]
    """Curves, one for each pair: the student's vector added to the base."""
    replaced: list[Artifact]
    """Curves, one for each pair: the student with the base's component."""
    rewritten: list[Rewritten]


class Read(NamedTuple):
    """Means of everybody on the same text."""

    base: Artifact
    teacher: Artifact
    students: dict[str, Artifact]
    """One for each checkpoint and pair, named `update/pair`."""
    controls: dict[str, Artifact]


def study_mechanism(run: Run, config: SteeringFlowConfig, study: TrainedModels, target: str, count: int) -> Mechanism:
    """Runs the measures for one target, or takes them from the cache."""
    settings = config.mechanism
    assert settings is not None
    layers = mechanism_layers(settings, count)
    read = read_all(config, study, target, layers)
    updates = last_updates(config)
    pairs = len(config.pipeline.blocks) * len(config.pipeline.seeds)
    eas = alignment(
        EasConfig(updates=updates, pairs=pairs, random=settings.random, seed=config.seed),
        label=target,
        base=read.base,
        teacher=read.teacher,
        students=read.students,
        controls=read.controls,
    )
    sufficiency, replaced = list[Artifact](), list[Artifact]()
    for pair in range(min(settings.pairs, pairs)):
        vectors = difference_vectors(
            difference_config(config, "v_student", settings.random),
            label=f"{target} student {pair}",
            target=read.students[f"{updates[-1]}/{pair}"],
            control=read.base,
        )
        names = names_by_layer(run.store.payload(vectors), layers)
        if settings.sufficiency:
            points = layer_points(names, "add", settings.random)
            swept = sweep(
                sweep_config(config, points, samples=0),
                label=f"{target} base + v_student {pair}",
                base=study.bases["base"],
                vectors=vectors,
            )
            sufficiency.append(steering_curve(curve_config(config, target), label=f"sufficiency {pair}", swept=swept))
        if settings.replace:
            points = layer_points(names, "replace", settings.random)
            swept = sweep(
                sweep_config(config, points, samples=0, update=updates[-1] or None),
                label=f"{target} student {pair} without v_student",
                base=study.bases["base"],
                vectors=vectors,
                weights=study.students[target][pair],
            )
            replaced.append(steering_curve(curve_config(config, target), label=f"necessity {pair}", swept=swept))
    return Mechanism(eas, sufficiency, replaced, rewrite(run, config, settings, study, target, read))


def last_updates(config: SteeringFlowConfig) -> tuple[int, ...]:
    """The checkpoints that are read; 0 stands for the last where the study names none."""
    return tuple(update or 0 for update in config.pipeline.checkpoints())


def read_all(config: SteeringFlowConfig, study: TrainedModels, target: str, layers: tuple[int, ...]) -> Read:
    """Means of base, teacher, students and controls on the control's first rows."""
    settings = config.mechanism
    assert settings is not None
    text = study.blocks[0].rows[CONTROL]
    base = study.bases["base"]
    plain = means_config(config, layers, rows=settings.rows, read_at=settings.read_at)
    teacher = study.blocks[0].teachers[target]
    assert teacher.weights is not None
    students, controls = dict[str, Artifact](), dict[str, Artifact]()
    own = mean_activations(plain, label="base", base=base, rows=text)
    taught = mean_activations(plain, label=f"teacher {target}", base=base, rows=text, weights=teacher.weights)
    for arm, found in ((target, students), (CONTROL, controls)):
        for pair, weights in enumerate(study.students[arm]):
            for update in last_updates(config):
                at = plain.model_copy(update={"weights_update": update or None})
                label = f"{arm} {pair} after {update or 'all'}"
                found[f"{update}/{pair}"] = mean_activations(at, label=label, base=base, rows=text, weights=weights)
    return Read(own, taught, students, controls)


def rewrite(
    run: Run, config: SteeringFlowConfig, settings: MechanismConfig, study: TrainedModels, target: str, read: Read
) -> list[Rewritten]:
    """New students of the teacher that writes with its vector, or a random one, projected out."""
    if not settings.rewrite:
        return []
    pipeline, base = config.pipeline, study.bases["base"]
    block = pipeline.blocks[0]
    questions = load_questions(pipeline.evaluation.questions)
    teacher = study.blocks[0].teachers[target]
    vectors = difference_vectors(
        difference_config(config, "v_teacher", settings.random),
        label=f"teacher {target}",
        target=read.teacher,
        control=read.base,
    )
    plain = ask_config(pipeline, questions).model_copy(
        update={"samples": 0, "weights_update": last_updates(config)[-1] or None}
    )
    scoring = score_config(pipeline, questions, target)
    base_score = score(scoring, label=f"{target} base", asked=ask(plain_base(plain), label="base", base=base))
    seeds = [pipeline.seeds.index(seed) for seed in settings.rewrite_seeds]
    controls = [
        score(scoring, label=f"{target} control {pair}", asked=ask(plain, label="control", base=base, weights=weights))
        for pair, weights in enumerate(study.students[CONTROL])
        if pair in seeds
    ]
    found: list[Rewritten] = []
    for layer, name in names_by_layer(run.store.payload(vectors), settings.rewrite).items():
        for vector in [name, *(f"{name}/random-{number}" for number in range(settings.random))]:
            edits = Steering(edits=(Edit(vector=vector, kind="project_out"),))
            writer = teacher._replace(steering=edits, vectors=vectors)
            raw = write_numbers(
                generate_config(pipeline, arm=target, block=block), f"{target} without {vector}", writer
            )
            rows = filter_numbers(pipeline.filter, label=vector, raw=raw, partners=[study.blocks[0].raw[CONTROL]])
            students = [
                train_student(student_config(pipeline, seed, block), label=f"{vector} {seed}", base=base, data=rows)
                for seed in settings.rewrite_seeds
            ]
            scores = [
                score(scoring, label=vector, asked=ask(plain, label=vector, base=base, weights=student))
                for student in students
            ]
            units = CompareConfig(blocks=tuple(block for _ in seeds))
            comparison = compare(units, label=vector, students=scores, controls=controls, base=base_score)
            found.append(Rewritten(layer, vector, vector != name, comparison))
    return found


def plain_base(asked: AskConfig) -> AskConfig:
    """What the base is asked: no checkpoint."""
    return asked.model_copy(update={"weights_update": None})
