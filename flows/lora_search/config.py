"""Everything a parameter search can be told, on top of what a pipeline run can; checked before anything runs."""

import difflib
import logging
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from flows.pipeline.checks import check as check_pipeline
from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import ask_config, generate_config
from flows.runs.fields import full_path, walk
from sublim.core.config import Config, RunOnly
from sublim.core.digest import canonical, digest
from sublim.core.errors import UserError
from sublim.search.config import (
    KNOWN_SPACE,
    Journal,
    Multiple,
    Objective,
    Pruning,
    Range,
    SamplerConfig,
    StorageConfig,
    StudyConfig,
)
from sublim.store.folder import Store
from sublim.store.opening import open_store
from sublim.training.config import TrainConfig
from sublim.traits.questions import load_questions

log = logging.getLogger("sublim.search")


class ConfirmConfig(Config):
    """The best trial against the student as it is set, on rows that the search never saw."""

    blocks: Annotated[tuple[int, ...], Field(min_length=4)] = (1, 2, 3, 4)
    """Fresh blocks, each with its own teacher and rows; they are the units of the interval."""


class WorkerConfig(Config):
    """How this run takes part in the study; nothing here changes a trial."""

    role: Literal["all", "trials"] = "all"
    """`all` also re-runs the best trial and writes the report; `trials` ends when the trials are made."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Begin no further trial after so long; the same command goes on later. Nothing: make all trials."""
    heartbeat: Annotated[int, Field(ge=1)] = 30
    """Seconds between two signs of life of a trial."""
    grace: Annotated[int, Field(ge=1)] = 120
    """Seconds without one after which another worker takes a trial over."""
    attempts: Annotated[int, Field(ge=1)] = 4
    """Workers that may die of one trial before it is given up."""


class LoraSearchConfig(PipelineConfig):
    """A search over the student's parameters for one target."""

    study: RunOnly[str | None] = None
    """Name of the study; nothing: the target and a digest of the settings, so that other settings are another study."""
    storage: RunOnly[StorageConfig] = Journal()
    """Where the study lies."""
    trials: RunOnly[int] = Field(default=36, ge=1)
    """Trials to make. A finished study goes on when this is raised."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("loss",)
    """loss: held-out loss of the student on its teacher's rows; effect: student minus its paired control, trained with
    the same parameters; cost: what the student has lost of the base's share right on MMLU-Pro (`evaluation.mmlu_pro`).
    With several, a Pareto front, and the best is the front's best in the first."""
    metric: Literal["margin", "rate"] = "margin"
    """Metric of the effect."""
    space: dict[str, Range | None] = KNOWN_SPACE
    """The searched fields of `student`, each with its range, of one `kind`: `float` or `int` (low, high, log, step),
    `choice` (values) or `multiple` (of another field, values). A field set to nothing is not searched."""
    sampler: SamplerConfig = SamplerConfig()
    """What proposes parameters."""
    pruning: Pruning | None = None
    """Stop trials early by their held-out loss at rungs; for a single objective."""
    start_from_default: bool = True
    """Make `student` as it is set the first trial, if it lies inside the space."""
    confirm: RunOnly[ConfirmConfig | None] = ConfirmConfig()
    """Re-run the best trial and the default on fresh blocks; nothing: leave it at the search."""
    worker: RunOnly[WorkerConfig] = WorkerConfig()
    """How this run takes part."""

    @model_validator(mode="after")
    def _one_study(self) -> Self:
        if len(self.target) != 1 or len(self.blocks) != 1:
            raise ValueError("a search has one target and one block: start one run for each")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("an objective is named twice")
        if self.pruning is not None and len(self.objectives) > 1:
            raise ValueError("pruning needs a single objective: a front has no loss to judge its trials by")
        if self.confirm is not None and set(self.confirm.blocks) & set(self.blocks):
            raise ValueError("confirm.blocks must be fresh: the search's own block is among them")
        if self.filter.held_out == 0 and ("loss" in self.objectives or self.pruning):
            raise ValueError("filter.held_out is 0: the held-out loss needs rows that nobody trains on")
        if "effect" in self.objectives and self.metric == "rate" and self.evaluation.samples == 0:
            raise ValueError("the sampled rate needs answers: raise evaluation.samples or take the metric margin")
        if "cost" in self.objectives and self.evaluation.mmlu_pro is None:
            raise ValueError("the cost needs questions: set evaluation.mmlu_pro")
        if self.labels != "hard" or self.arms or self.diagnostics or self.evaluation.updates:
            raise ValueError("a search trains one arm on hard labels: leave labels, arms, diagnostics and updates out")
        return self

    def pipeline(self) -> PipelineConfig:
        """The pipeline run that a trial is a part of."""
        return PipelineConfig(**{name: getattr(self, name) for name in PipelineConfig.model_fields})


def check(config: LoraSearchConfig) -> None:
    """Raises UserError for whatever can be known to go wrong."""
    from sublim.search.space import check_space  # Optuna takes a second to import, `--help` needs none of it

    check_pipeline(config)
    check_space(config.student, searched(config))
    if config.student.updates is not None:  # else the rows tell, once they are there
        check_rungs(config.pruning, config.student.updates)
    if config.study is not None or config.storage != Journal():  # otherwise it is a study of its own in the store
        from sublim.search.opening import check_stored

        check_stored(study_config(config, updates=1))


def check_rungs(pruning: Pruning | None, updates: int) -> None:
    """Raises UserError for pruning that could stop nobody."""
    if pruning is not None and pruning.first >= updates:
        raise UserError(
            f"pruning.first is {pruning.first}, a whole trial makes {updates} updates: lower it, or leave pruning out"
        )


def searched(config: LoraSearchConfig) -> dict[str, Range]:
    """The space by full names; UserError with the nearest right ones for a field that does not exist."""
    run_only = {field.path for field in walk(TrainConfig) if field.run_only}
    space: dict[str, Range] = {}
    for name, each in config.space.items():
        if each is None:
            continue
        path = field_of_student(name)
        if path in run_only:
            raise UserError(f"space: {path} changes how fast a student trains and nothing else: leave it out")
        if path in ("seed", "keep"):
            raise UserError(f"space: {path} is set by the search itself: leave it out")
        if isinstance(each, Multiple):
            each = each.model_copy(update={"of": field_of_student(each.of)})
        space[path] = each
    return space


def field_of_student(name: str) -> str:
    """The full name of a student's field: `rank` is `method.rank`."""
    try:
        return full_path(TrainConfig, name)
    except UserError as error:
        by_name = {spelling: field.path for field in walk(TrainConfig) for spelling in (field.path, leaf(field.path))}
        alike = [by_name[one] for one in difflib.get_close_matches(name, by_name, n=4)]
        told = [field.path for field in walk(TrainConfig) if name.replace("_", " ") in field.meaning.lower()]
        near = dict.fromkeys([*told, *alike])
        hint = f": did you mean {' or '.join(near)}?" if near else f" (has: {', '.join(sorted({*by_name.values()}))})"
        raise UserError(f"space: a student has no field {name!r}{hint}") from error


def leaf(path: str) -> str:
    """The last part of a dotted name."""
    return path.rpartition(".")[2]


def study_config(config: LoraSearchConfig, updates: int) -> StudyConfig:
    """The study that this run works on."""
    from sublim.search.space import params_of

    space, settings = searched(config), trial_settings(config)
    name = config.study or f"{config.target[0]}-{digest(settings)[:8]}"
    storage = config.storage
    if isinstance(storage, Journal) and storage.path is None:
        storage = Journal(path=open_store().root / "studies" / f"{name}.journal")
    return StudyConfig(
        name=name,
        storage=storage,
        objectives=config.objectives,
        space=space,
        sampler=config.sampler,
        pruning=config.pruning,
        updates=updates,
        settings=settings,
        first=params_of(config.student, space) if config.start_from_default else None,
        trials=config.trials,
        heartbeat=config.worker.heartbeat,
        grace=config.worker.grace,
        attempts=config.worker.attempts,
    )


def tell_if_alone(config: LoraSearchConfig, store: Store) -> None:
    """Warns where the store is for many machines and the study is a file of this one."""
    if isinstance(config.storage, Journal) and config.storage.path is None and store.address != str(store.root):
        log.warning(
            "the store is in a bucket and the study in a file on this machine: workers elsewhere make a study of their "
            "own, unless storage.kind=postgres or storage.path names what all reach"
        )


def trial_settings(config: LoraSearchConfig) -> dict[str, Any]:
    """Everything that a trial's result depends on, texts that settings only name included."""
    questions = load_questions(config.evaluation.questions)
    generate = generate_config(config, arm=config.target[0], block=config.blocks[0])
    texts = {"asked": digest(ask_config(config, questions)), "prompts": digest(generate)}
    tree = cast(dict[str, Any], canonical(config))
    return {**tree, "space": canonical(searched(config)), "texts": texts}
