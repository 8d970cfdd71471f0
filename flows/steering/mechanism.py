"""The mechanism part of a steering run: two alignments over training, sufficiency, and necessity in its two senses.

Everybody reads the control's number lists. v_teacher is teacher minus base, v_student student minus base. Both
alignments stand beside those with every other teacher of the study. Sufficiency adds a student's vector to the base;
replacing puts the base's component along it into the student; rewriting lets the teacher write with its own vector
projected out and trains new students on that.
"""

from typing import NamedTuple

from flows.pipeline.models import ModelState, ask_model, write_numbers
from flows.pipeline.plan import CONTROL, ask_config, generate_config, score_config, student_config
from flows.pipeline.study import TrainedModels
from flows.runs.record import Run
from flows.steering.config import MechanismConfig, SteeringFlowConfig
from flows.steering.necessity import Replaced, Student, replace
from flows.steering.plan import curve_config, layer_points, means_config, sweep_config
from sublim.evals.effect_config import CompareConfig
from sublim.residual.edits import Edit, Steering, names_by_layer
from sublim.steering.alignment_config import EasConfig, Measure
from sublim.steering.config import DifferenceConfig, MeanAt
from sublim.store.manifest import Artifact
from tasks.stages import (
    alignment,
    compare,
    difference_vectors,
    filter_numbers,
    mean_activations,
    score,
    steering_curve,
    sweep,
    train_student,
)

PAPER_AT: tuple[MeanAt, MeanAt] = ("mean_prompt", "last_prompt")
"""Where arXiv 2606.00995's code reads students and teachers. It counts special tokens and weighs tokens, not prompts,
alike; here special tokens are left out and every prompt has the same weight."""


class Rewritten(NamedTuple):
    """Students of a teacher that wrote without a direction, against the study's controls."""

    layer: int
    vector: str
    random: bool
    comparison: Artifact


class Mechanism(NamedTuple):
    """What was measured for one target."""

    above_control: Artifact
    """v_student minus v_control with v_teacher, at answer tokens."""
    paper: Artifact
    """v_student with v_teacher, at prompt tokens, after arXiv 2606.00995."""
    sufficiency: list[Artifact]
    """Curves, one for each pair: the student's vector added to the base."""
    replaced: list[Replaced]
    """One for each pair: the student with the base's component."""
    rewritten: list[Rewritten]


class Read(NamedTuple):
    """Means of everybody on the same text."""

    base: Artifact
    teacher: Artifact
    students: dict[str, Artifact]
    """One for each checkpoint and pair, named `update/pair`."""
    controls: dict[str, Artifact]
    others: dict[str, Artifact]
    """The other targets' teachers."""


def study_mechanism(run: Run, config: SteeringFlowConfig, study: TrainedModels, target: str, count: int) -> Mechanism:
    """Runs the measures for one target, or takes them from the cache."""
    settings = config.mechanism
    assert settings is not None
    layers = tuple(range(count)) if settings.layers is None else settings.layers
    read = read_all(config, settings, study, target, layers, (settings.read_at,))
    last, pairs = last_updates(config)[-1], len(config.pipeline.blocks) * len(config.pipeline.seeds)

    def aligned(measure: Measure, student_at: MeanAt, teacher_at: MeanAt, means: Read) -> Artifact:
        at = EasConfig(
            measure=measure,
            student_at=student_at,
            teacher_at=teacher_at,
            updates=last_updates(config),
            pairs=pairs,
            random=settings.random,
            seed=config.seed,
        )
        return alignment(at, label=f"{target}, {measure}", **means._asdict())

    above_control = aligned("alignment_above_control", settings.read_at, settings.read_at, read)
    prompts = read_all(config, settings, study, target, layers, PAPER_AT)
    paper = aligned("alignment_paper", *PAPER_AT, prompts)
    own = [
        difference_vectors(
            DifferenceConfig(source="v_student", random=settings.random, seed=config.seed),
            label=f"{target} student {pair}",
            target=read.students[f"{last}/{pair}"],
            control=read.base,
        )
        for pair in range(min(settings.pairs, pairs))
    ]

    def added(pair: int, vectors: Artifact) -> Artifact:
        """The vector, and random ones, added to the base, layer by layer."""
        points = layer_points(names_by_layer(run.store.payload(vectors), layers), settings.random)
        asked = sweep_config(config, points, samples=0)
        swept = sweep(asked, label=f"{target} base + v_student {pair}", base=study.bases["base"], vectors=vectors)
        return steering_curve(curve_config(config, target), label=f"sufficiency {pair}", swept=swept)

    def beside(pair: int) -> dict[str, Artifact]:
        """What a student's own vector is set against when it is replaced, by direction."""
        sides = {"v_control": read.controls[f"{last}/{pair}"]}
        sides |= {f"teacher-{name}": each for name, each in read.others.items()}
        return {
            direction: difference_vectors(
                DifferenceConfig(source=direction, random=0), label=direction, target=side, control=read.base
            )
            for direction, side in sides.items()
        }

    sufficiency = [added(pair, vectors) for pair, vectors in enumerate(own if settings.sufficiency else ())]
    replaced = [
        replace(run, config, target, layers, Student(study, pair, last, vectors, beside(pair)))
        for pair, vectors in enumerate(own if settings.replace else ())
    ]
    return Mechanism(above_control, paper, sufficiency, replaced, rewrite(run, config, settings, study, target, read))


def last_updates(config: SteeringFlowConfig) -> tuple[int, ...]:
    """The checkpoints that are read; 0 stands for the last where the study names none."""
    return tuple(update or 0 for update in config.pipeline.checkpoints())


def read_all(
    config: SteeringFlowConfig,
    settings: MechanismConfig,
    study: TrainedModels,
    target: str,
    layers: tuple[int, ...],
    read_at: tuple[MeanAt, ...],
) -> Read:
    """Means of base, teachers, students and controls on the control's first rows, at these tokens."""
    text, base = study.blocks[0].rows[CONTROL], study.bases["base"]
    plain = means_config(config, layers, rows=settings.rows, read_at=read_at[0])
    plain = plain.model_copy(update={"read_at": read_at})

    def read(label: str, weights: Artifact | None, update: int = 0) -> Artifact:
        at = plain.model_copy(update={"weights_update": update or None})
        return mean_activations(at, label=label, base=base, rows=text, weights=weights)

    def trained(arm: str) -> dict[str, Artifact]:
        return {
            f"{update}/{pair}": read(f"{arm} {pair} after {update or 'all'}", weights, update)
            for pair, weights in enumerate(study.students[arm])
            for update in last_updates(config)
        }

    teachers = {
        name: read(f"teacher {name}", each.weights) for name, each in study.blocks[0].teachers.items() if each.weights
    }
    own = teachers.pop(target)
    return Read(read("base", None), own, trained(target), trained(CONTROL), teachers)


def rewrite(
    run: Run, config: SteeringFlowConfig, settings: MechanismConfig, study: TrainedModels, target: str, read: Read
) -> list[Rewritten]:
    """New students of the teacher that writes with its vector, or a random one, projected out."""
    if not settings.rewrite:
        return []
    pipeline, base = config.pipeline, study.bases["base"]
    block = pipeline.blocks[0]
    vectors = difference_vectors(
        DifferenceConfig(source="v_teacher", random=settings.random, seed=config.seed),
        label=f"teacher {target}",
        target=read.teacher,
        control=read.base,
    )
    plain, scoring = ask_config(pipeline), score_config(pipeline, target)
    plain = plain.model_copy(update={"samples": 0})

    def scored(label: str, asked: str, weights: Artifact | None) -> Artifact:
        model = ModelState(base, weights, last_updates(config)[-1] or None if weights else None)
        return score(scoring, label=label, asked=ask_model(plain, asked, model))

    base_score = scored(f"{target} base", "base", None)
    seeds = [pipeline.seeds.index(seed) for seed in settings.rewrite_seeds]
    controls = [
        scored(f"{target} control {pair}", "control", weights)
        for pair, weights in enumerate(study.students[CONTROL])
        if pair in seeds
    ]
    found: list[Rewritten] = []
    for layer, name in names_by_layer(run.store.payload(vectors), settings.rewrite).items():
        for vector in [name, *(f"{name}/random-{number}" for number in range(settings.random))]:
            edits = Steering(edits=(Edit(vector=vector, kind="project_out"),))
            writer = study.blocks[0].teachers[target]._replace(steering=edits, vectors=vectors)
            writing = generate_config(pipeline, arm=target, block=block)
            raw = write_numbers(writing, f"{target} without {vector}", writer)
            rows = filter_numbers(pipeline.filter, label=vector, raw=raw, partners=[study.blocks[0].raw[CONTROL]])
            students = [
                train_student(student_config(pipeline, seed, block), label=f"{vector} {seed}", base=base, data=rows)
                for seed in settings.rewrite_seeds
            ]
            scores = [scored(vector, vector, student) for student in students]
            units = CompareConfig(blocks=tuple(block for _ in seeds))
            comparison = compare(units, label=vector, students=scores, controls=controls, base=base_score)
            found.append(Rewritten(layer, vector, vector != name, comparison))
    return found
