"""One trial of a search: cached stages from parameters to held-out loss and effect."""

import json
from typing import NamedTuple

import optuna

from flows.lora_search.config import LoraSearchConfig, searched
from flows.pipeline.block import write_block
from flows.pipeline.capability import examine, questions_of
from flows.pipeline.models import ModelState
from flows.pipeline.plan import CONTROL, ask_config, score_config, student_config
from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig
from sublim.evals.heldout_loss.config import HeldoutConfig, HeldoutLoss
from sublim.evals.mmlu_pro.config import MmluProScores, ScoreMmluProConfig
from sublim.evals.preference.config import Comparison
from sublim.files.jsonl import read_jsonl
from sublim.inference.config import HfBackend
from sublim.search.config import SIGN, Objective, RungConfig
from sublim.search.pruning import rungs
from sublim.search.space import student_with
from sublim.search.study import Asked, Measured, Unmeasurable
from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from sublim.training.config import TrainConfig
from sublim.training.plan import planned_updates
from sublim.traits.questions import Questions
from tasks.processes import OutOfDeviceMemory, one_process
from tasks.stages import ask, compare, heldout_loss, score, score_mmlu_pro, train_rung, train_student


class Block(NamedTuple):
    """A teacher's rows and the base's: what students of one block learn."""

    number: int
    base: Artifact
    rows: dict[str, Artifact]
    """By arm: the target and `control`."""


class Values(NamedTuple):
    """What was measured with one set of parameters on one block."""

    by_objective: dict[Objective, float]
    """Means over the seeds."""
    notes: dict[str, float]
    """What else is worth showing: the parts of the effect."""

    def in_order(self, objectives: tuple[Objective, ...]) -> list[float]:
        return [self.by_objective[name] for name in objectives]


class Lab(NamedTuple):
    """What all trials of a run have in common."""

    config: LoraSearchConfig
    questions: Questions
    store: Store

    @property
    def target(self) -> str:
        return self.config.target[0]


def make_block(lab: Lab, base: Artifact, number: int) -> Block:
    """The rows of one block; the base writes its own only where a control will learn from them."""
    writers = (CONTROL, lab.target) if "effect" in lab.config.objectives else (lab.target,)
    written = write_block(lab.config, lab.questions, base, number, writers)
    return Block(number, base, written.rows)


def updates_of(lab: Lab, train: TrainConfig, block: Block) -> int:
    """How many updates a student makes."""
    rows = train.rows or sum(1 for _ in read_jsonl(lab.store.payload(block.rows[lab.target]) / "rows.jsonl"))
    return len(planned_updates(train, rows))


def measure_trial(lab: Lab, block: Block, asked: Asked) -> Measured:
    """Trains and measures with a trial's parameters; stops at a rung where the study's pruner says so."""
    try:
        train = student_with(lab.config.student, searched(lab.config), asked.params)
    except UserError as error:
        raise Unmeasurable(str(error)) from error
    try:
        with one_process():
            if lab.config.pruning is not None:
                climb(lab, block, train, asked)
            values = measure(lab, block, train, label=f"trial {asked.slot}")
    except OutOfDeviceMemory as error:
        raise Unmeasurable(str(error)) from error
    return Measured(values.in_order(lab.config.objectives), values.notes)


def climb(lab: Lab, block: Block, train: TrainConfig, asked: Asked) -> None:
    """Trains from rung to rung; raises TrialPruned, and drops the runs' checkpoints, where the trial is stopped."""
    runs = students_of(lab, block, train)
    label = f"trial {asked.slot}"
    for rung in rungs(lab.config.pruning, updates_of(lab, train, block)):
        losses: list[float] = []
        for run in runs:
            part = RungConfig(
                train=run, stop=rung, run_scratch=lab.store.scratch("train_student", run_key(lab, block, run))
            )
            weights = train_rung(part, label=f"{label} update {rung}", base=block.base, data=block.rows[lab.target])
            losses.append(loss(lab, block, weights, label=f"{label} update {rung}"))
        # The study's direction is that of its objective: a loss is turned round where more is better.
        asked.trial.report(-SIGN[lab.config.objectives[0]] * sum(losses) / len(losses), rung)
        if asked.trial.should_prune():
            for run in runs:
                lab.store.clear_scratch("train_student", run_key(lab, block, run))
            raise optuna.TrialPruned


def students_of(lab: Lab, block: Block, train: TrainConfig) -> list[TrainConfig]:
    """The training runs of one arm, one for each seed."""
    config = lab.config.model_copy(update={"student": train})
    runs = [student_config(config, seed, block.number) for seed in lab.config.seeds]
    if lab.config.pruning is None or train.checkpoint_every is not None:
        return runs
    return [run.model_copy(update={"checkpoint_every": lab.config.pruning.first}) for run in runs]


def run_key(lab: Lab, block: Block, run: TrainConfig) -> str:
    """The key of a run's training stage."""
    return train_student.key(run.resolved(), {"base": block.base, "data": block.rows[lab.target]})


def measure(lab: Lab, block: Block, train: TrainConfig, *, label: str) -> Values:
    """The objectives of one student's config on one block."""
    runs = students_of(lab, block, train)
    students = [
        train_student(run, label=f"{label} {lab.target}", base=block.base, data=block.rows[lab.target]) for run in runs
    ]
    found: dict[Objective, float] = {}
    notes: dict[str, float] = {}
    if "loss" in lab.config.objectives:
        losses = [loss(lab, block, student, label=label) for student in students]
        found["loss"] = sum(losses) / len(losses)
    if "effect" in lab.config.objectives:
        controls = [
            train_student(run, label=f"{label} control", base=block.base, data=block.rows[CONTROL]) for run in runs
        ]
        found["effect"], notes = effect(lab, block, students, controls, label=label)
    if "cost" in lab.config.objectives:
        found["cost"] = cost(lab, block, students, label=label)
    return Values(found, notes)


def loss(lab: Lab, block: Block, weights: Artifact, *, label: str) -> float:
    """Held-out loss in nats a token on the teacher's rows."""
    backend, config = lab.config.backend, HeldoutConfig(max_length=lab.config.student.max_length)
    if isinstance(backend, HfBackend):
        config = config.model_copy(update={"dtype": backend.dtype, "attention": backend.attention})
    made = heldout_loss(config, label=label, base=block.base, data=block.rows[lab.target], weights=weights)
    found = HeldoutLoss.model_validate_json((lab.store.payload(made) / "heldout.json").read_bytes())
    if found.loss is None:
        raise Unmeasurable(found.reason or "the held-out loss is missing")
    return found.loss


def effect(
    lab: Lab, block: Block, students: list[Artifact], controls: list[Artifact], *, label: str
) -> tuple[float, dict[str, float]]:
    """Students minus their paired controls, and the means behind it."""
    plain, scoring = ask_config(lab.config, lab.questions), score_config(lab.config, lab.questions, lab.target)

    def scored(name: str, weights: Artifact | None) -> Artifact:
        asked = ask(plain, label=name, base=block.base, weights=weights)
        return score(scoring, label=name, asked=asked)

    made = compare(
        CompareConfig(),
        label=label,
        students=[scored(f"{label} {lab.target}", student) for student in students],
        controls=[scored(f"{label} control", control) for control in controls],
        base=scored("base", None),
        teacher=None,
    )
    comparison = Comparison.model_validate(
        json.loads((lab.store.payload(made) / "comparison.json").read_text(encoding="utf-8"))
    )
    metric = comparison.metrics[lab.config.metric]
    if metric.effect is None or metric.student is None or metric.control is None:
        raise Unmeasurable(f"the effect is missing: {metric.reason}")
    return metric.effect.estimate, {"student": metric.student, "control": metric.control}


def cost(lab: Lab, block: Block, students: list[Artifact], *, label: str) -> float:
    """What the students have lost on MMLU-Pro: the base's share right minus theirs, the letter read by log-prob."""
    models = {"base": ModelState(block.base)}
    models |= {f"{label} {place}": ModelState(block.base, student) for place, student in enumerate(students)}
    answered = examine(lab.config, {name: (name, model) for name, model in models.items()})
    shares = {name: share_right(lab, artifact, name) for name, artifact in answered.items()}
    base = shares.pop("base")
    return base - sum(shares.values()) / len(shares)


def share_right(lab: Lab, answered: Artifact, label: str) -> float:
    """One model's share of right answers."""
    made = score_mmlu_pro(ScoreMmluProConfig(), label=label, asked=answered, questions=questions_of(lab.config))
    found = MmluProScores.model_validate_json((lab.store.payload(made) / "scores.json").read_bytes())
    read = found.metrics["letter_logprob"]
    if read is None or read.overall.estimate is None:
        raise Unmeasurable(f"MMLU-Pro could not be scored: {read and read.overall.reason}")
    return read.overall.estimate
