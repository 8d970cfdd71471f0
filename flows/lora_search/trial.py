"""One trial of a search: the cached stages from the parameters to the values of the objectives."""

from typing import NamedTuple

import optuna

from flows.lora_search.config import LoraSearchConfig, searched
from flows.pipeline.block import Block, write_block
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
from tasks.processes import OutOfDeviceMemory, one_process
from tasks.stages import ask, compare, heldout_loss, score, score_mmlu_pro, train_rung, train_student


class Lab(NamedTuple):
    """Everything that the trials of a run have in common."""

    config: LoraSearchConfig
    store: Store
    base: Artifact

    @property
    def target(self) -> str:
        """The one target of the search."""
        return self.config.target[0]


def make_block(lab: Lab, number: int) -> Block:
    """Makes the rows of one block. The base writes rows only if a control is trained on them."""
    writers = (CONTROL, lab.target) if "effect" in lab.config.objectives else (lab.target,)
    return write_block(lab.config, lab.base, number, writers)


def updates_of(lab: Lab, train: TrainConfig, block: Block) -> int:
    """The number of updates of a whole training run."""
    rows = train.rows or sum(1 for _ in read_jsonl(lab.store.payload(block.rows[lab.target]) / "rows.jsonl"))
    return len(planned_updates(train, rows))


def measure_trial(lab: Lab, block: Block, asked: Asked) -> Measured:
    """Trains a student with a trial's parameters and measures it.

    Raises Unmeasurable if that is impossible, and optuna.TrialPruned if pruning stops the trial at a rung.
    """
    try:
        train = student_with(lab.config.student, searched(lab.config), asked.params)
    except UserError as error:
        raise Unmeasurable(str(error)) from error
    try:
        with one_process():
            climb(lab, block, train, asked)
            return measure(lab, block, train, label=f"trial {asked.slot}")
    except OutOfDeviceMemory as error:
        raise Unmeasurable(str(error)) from error


def climb(lab: Lab, block: Block, train: TrainConfig, asked: Asked) -> None:
    """Trains from rung to rung. If pruning stops the trial, drops the checkpoints and raises optuna.TrialPruned."""
    runs = students_of(lab, block, train)
    label = f"trial {asked.slot}"
    for rung in rungs(lab.config.pruning, updates_of(lab, train, block)):
        losses: list[float] = []
        for run in runs:
            part = RungConfig(
                train=run, stop=rung, run_scratch=lab.store.scratch("train_student", run_key(lab, block, run))
            )
            weights = train_rung(part, label=f"{label} update {rung}", base=lab.base, data=block.rows[lab.target])
            losses.append(loss(lab, block, weights, label=f"{label} update {rung}"))
        # Pruning compares in the direction of the objective, so the loss changes its sign if more is better.
        asked.trial.report(-SIGN[lab.config.objectives[0]] * sum(losses) / len(losses), rung)
        if asked.trial.should_prune():
            for run in runs:
                lab.store.clear_scratch("train_student", run_key(lab, block, run))
            raise optuna.TrialPruned


def students_of(lab: Lab, block: Block, train: TrainConfig) -> list[TrainConfig]:
    """The settings of the training runs, one for each seed."""
    config = lab.config.model_copy(update={"student": train})
    runs = [student_config(config, seed, block.number) for seed in lab.config.seeds]
    if lab.config.pruning is None or train.checkpoint_every is not None:
        return runs
    return [run.model_copy(update={"checkpoint_every": lab.config.pruning.first}) for run in runs]


def run_key(lab: Lab, block: Block, run: TrainConfig) -> str:
    """The cache key of the stage that trains a whole run."""
    return train_student.key(run.resolved(), {"base": lab.base, "data": block.rows[lab.target]})


def measure(lab: Lab, block: Block, train: TrainConfig, *, label: str) -> Measured:
    """Trains students with one set of parameters on one block, and measures the objectives, averaged over the seeds.

    Noted for the effect: the mean of the students and of the controls.
    """
    runs = students_of(lab, block, train)

    def trained(arm: str) -> list[Artifact]:
        return [train_student(run, label=f"{label} {arm}", base=lab.base, data=block.rows[arm]) for run in runs]

    students = trained(lab.target)
    found: dict[Objective, float] = {}
    notes: dict[str, float] = {}
    if "loss" in lab.config.objectives:
        losses = [loss(lab, block, student, label=label) for student in students]
        found["loss"] = sum(losses) / len(losses)
    if "effect" in lab.config.objectives:
        found["effect"], notes = effect(lab, students, trained(CONTROL), label=label)
    if "cost" in lab.config.objectives:
        found["cost"] = cost(lab, students, label=label)
    return Measured([found[name] for name in lab.config.objectives], notes)


def loss(lab: Lab, block: Block, weights: Artifact, *, label: str) -> float:
    """Held-out loss on the teacher's rows, in nats per token."""
    backend, config = lab.config.backend, HeldoutConfig(max_length=lab.config.student.max_length)
    if isinstance(backend, HfBackend):
        config = config.model_copy(update={"dtype": backend.dtype, "attention": backend.attention})
    made = heldout_loss(config, label=label, base=lab.base, data=block.rows[lab.target], weights=weights)
    found = HeldoutLoss.model_validate_json((lab.store.payload(made) / "heldout.json").read_bytes())
    if found.loss is None:
        raise Unmeasurable(found.reason or "the held-out loss is missing")
    return found.loss


def effect(
    lab: Lab, students: list[Artifact], controls: list[Artifact], *, label: str
) -> tuple[float, dict[str, float]]:
    """The effect: students minus their paired controls, and the means of both."""
    plain, scoring = ask_config(lab.config), score_config(lab.config, lab.target)

    def scored(name: str, weights: Artifact | None) -> Artifact:
        asked = ask(plain, label=name, base=lab.base, weights=weights)
        return score(scoring, label=name, asked=asked)

    made = compare(
        CompareConfig(),
        label=label,
        students=[scored(f"{label} {lab.target}", student) for student in students],
        controls=[scored(f"{label} control", control) for control in controls],
        base=scored("base", None),
        teacher=None,
    )
    comparison = Comparison.model_validate_json((lab.store.payload(made) / "comparison.json").read_bytes())
    metric = comparison.metrics[lab.config.metric]
    if metric.effect is None or metric.student is None or metric.control is None:
        raise Unmeasurable(f"the effect is missing: {metric.reason}")
    return metric.effect.estimate, {"student": metric.student, "control": metric.control}


def cost(lab: Lab, students: list[Artifact], *, label: str) -> float:
    """The base's accuracy on MMLU-Pro minus that of the students, with the letter read by log-prob."""
    models = {"base": ModelState(lab.base)}
    models |= {f"{label} {place}": ModelState(lab.base, student) for place, student in enumerate(students)}
    questions = questions_of(lab.config)
    assert questions is not None
    answered = examine(lab.config, {name: (name, model) for name, model in models.items()}, questions)
    shares = {name: share_right(lab, artifact, name, questions) for name, artifact in answered.items()}
    base = shares.pop("base")
    return base - sum(shares.values()) / len(shares)


def share_right(lab: Lab, answered: Artifact, label: str, questions: Artifact) -> float:
    """The accuracy of one model."""
    made = score_mmlu_pro(ScoreMmluProConfig(), label=label, asked=answered, questions=questions)
    found = MmluProScores.model_validate_json((lab.store.payload(made) / "scores.json").read_bytes())
    read = found.metrics["letter_logprob"]
    if read is None or read.overall.estimate is None:
        raise Unmeasurable(f"MMLU-Pro could not be scored: {read and read.overall.reason}")
    return read.overall.estimate
