"""The settings of a parameter search, in addition to those of a pipeline run, and their check before anything runs."""

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
from sublim.evals.preference.config import UNITS
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

log = logging.getLogger("sublim.search")


class ConfirmConfig(Config):
    """Settings of the comparison of the best trial with the default student, on rows that the search has not seen."""

    blocks: Annotated[tuple[int, ...], Field(min_length=4)] = (1, 2, 3, 4)
    """Blocks that the search has not used, each with its own teacher and rows. They are the units of the interval."""


class WorkerConfig(Config):
    """How this run takes part in the study. Nothing here changes a trial."""

    role: Literal["all", "trials"] = "all"
    """`all`: make trials, then compare the best with the default and write the report. `trials`: make trials only."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes after which no further trial is started; the same command continues later. Null: make all trials."""
    heartbeat: Annotated[int, Field(ge=1)] = 30
    """Seconds between two heartbeats of a running trial."""
    grace: Annotated[int, Field(ge=1)] = 120
    """Seconds without a heartbeat after which another worker takes over the trial."""
    attempts: Annotated[int, Field(ge=1)] = 4
    """Number of workers that may die during one trial before it is given up."""


class LoraSearchConfig(PipelineConfig):
    """Settings of a search over the student's training parameters, for one target."""

    study: RunOnly[str | None] = None
    """Name of the study. Null: the target and a digest of the settings, so that other settings give another study."""
    storage: RunOnly[StorageConfig] = Journal()
    """Storage of the study."""
    trials: RunOnly[int] = Field(default=36, ge=1)
    """Number of trials to make. A finished study continues if this is raised."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("loss",)
    """Quantities to optimise. `loss`: held-out loss of the student on its teacher's rows. `effect`: student minus its
    paired control, trained with the same parameters. `cost`: the base's accuracy on MMLU-Pro minus the student's
    (`evaluation.mmlu_pro`). With several objectives the result is a Pareto front, and the best trial is the one of the
    front that is best in the first objective."""
    metric: Literal["margin", "rate"] = "margin"
    """Metric by which the effect is measured: the margin in nats, or the share of all answers asked that name the
    target."""
    space: dict[str, Range | None] = KNOWN_SPACE
    """Searched fields of `student`, each with a range of one `kind`: `float` or `int` (low, high, log, step), `choice`
    (values) or `multiple` (values, the factors, and `of`, another field). A field set to null is not searched."""
    sampler: SamplerConfig = SamplerConfig()
    """Sampler that proposes parameters."""
    pruning: Pruning | None = None
    """Rule that stops trials early by their held-out loss at rungs; for a single objective only. Null: no trial is
    stopped early."""
    start_from_default: bool = True
    """Whether the first trial is `student` as it is set, provided that it lies inside the search space."""
    confirm: RunOnly[ConfirmConfig | None] = ConfirmConfig()
    """Comparison of the best trial with the default on fresh blocks; null: no comparison."""
    worker: RunOnly[WorkerConfig] = WorkerConfig()
    """How this run takes part in the study."""

    @property
    def compared(self) -> tuple[str, ...]:
        """None: a search maximises the total effect, which every trial's own controls give."""
        return ()

    @model_validator(mode="after")
    def _one_study(self) -> Self:
        if len(self.target) != 1 or len(self.blocks) != 1:
            raise ValueError("a search has one target and one block: start one run for each of them")
        if self.against:
            raise ValueError(
                "a search has no comparison target: leave `against` out, and run the best trial's settings"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("an objective is named twice")
        if self.pruning is not None and len(self.objectives) > 1:
            raise ValueError("pruning needs a single objective: leave pruning out, or all objectives but one")
        if self.confirm is not None and set(self.confirm.blocks) & set(self.blocks):
            raise ValueError("confirm.blocks must be fresh blocks: leave the search's own block out of them")
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
        """The settings of the pipeline run whose stages a trial uses."""
        return PipelineConfig(**{name: getattr(self, name) for name in PipelineConfig.model_fields})


def check(config: LoraSearchConfig) -> None:
    """Raises UserError for every mistake in the settings that can be found before the run."""
    from sublim.search.space import check_space  # importing Optuna takes a second, and `--help` does not need it

    check_pipeline(config)
    check_space(config.student, searched(config))
    if config.student.updates is not None:  # otherwise it depends on the number of rows, which is checked later
        check_rungs(config.pruning, config.student.updates)
    if config.study is not None or config.storage != Journal():  # otherwise settings give the name
        from sublim.search.opening import check_stored

        check_stored(study_config(config, updates=1))


def check_rungs(pruning: Pruning | None, updates: int) -> None:
    """Raises UserError for pruning that could not stop any trial."""
    if pruning is not None and pruning.first >= updates:
        raise UserError(
            f"pruning.first is {pruning.first}, a whole trial makes {updates} updates: lower it, or leave pruning out"
        )


def searched(config: LoraSearchConfig) -> dict[str, Range]:
    """The search space by full names of fields. UserError suggests similar names for a field that does not exist."""
    run_only = {field.path for field in walk(TrainConfig) if field.run_only}
    space: dict[str, Range] = {}
    for name, each in config.space.items():
        if each is None:
            continue
        path = field_of_student(name)
        if path in run_only:
            raise UserError(f"space: {path} only changes how fast a student is trained: leave it out")
        if path in ("seed", "keep"):
            raise UserError(f"space: {path} is set by the search itself: leave it out")
        if isinstance(each, Multiple):
            each = each.model_copy(update={"of": field_of_student(each.of)})
        space[path] = each
    return space


def field_of_student(name: str) -> str:
    """The full name of a student's field, such as `method.rank` for `rank`."""
    try:
        return full_path(TrainConfig, name)
    except UserError as error:
        fields = list(walk(TrainConfig))
        by_name = {spelt: field.path for field in fields for spelt in (field.path, field.path.rpartition(".")[2])}
        alike = [by_name[one] for one in difflib.get_close_matches(name, by_name, n=4)]
        told = [field.path for field in fields if name.replace("_", " ") in field.meaning.lower()]
        near = dict.fromkeys([*told, *alike])
        hint = f": did you mean {' or '.join(near)}?" if near else f" (has: {', '.join(sorted({*by_name.values()}))})"
        raise UserError(f"space: a student has no field {name!r}{hint}") from error


def study_config(config: LoraSearchConfig, updates: int) -> StudyConfig:
    """The settings of the study of this run."""
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
        **config.worker.model_dump(include={"heartbeat", "grace", "attempts"}),
    )


def tell_if_alone(config: LoraSearchConfig, store: Store) -> None:
    """Warns if several machines share the store but the study is a file on this machine alone."""
    if isinstance(config.storage, Journal) and config.storage.path is None and store.address != str(store.root):
        log.warning(
            "the store is in a bucket, but the study is a file on this machine: workers on other machines create "
            "studies of their own unless storage.kind=postgres or storage.path names a file that all can reach"
        )


def trial_settings(config: LoraSearchConfig) -> dict[str, Any]:
    """All settings on which the result of a trial depends, including the contents of text files that they name."""
    generate = generate_config(config, arm=config.target[0], block=config.blocks[0])
    texts = {"asked": digest(ask_config(config)), "prompts": digest(generate)}
    tree = cast(dict[str, Any], canonical(config))
    # Trials of earlier versions measured the rate over readable answers, and are no trials of the same study.
    rate = {"rate": UNITS["rate"]} if "effect" in config.objectives and config.metric == "rate" else {}
    return {**tree, "space": canonical(searched(config)), "texts": texts, **rate}
