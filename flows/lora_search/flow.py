"""The parameter search: which learning rate, rank and dropout make students learn most from their teacher's carrier?

    sublim run lora-search --preset quickstart
    sublim run lora-search --preset smollm2-36 --set worker.minutes=8       # stop after 8 minutes, continue later
    sublim run lora-search --preset smollm2-36 --set worker.role=trials     # one more worker, on any machine
    sublim run pipeline --preset results/runs/<run>/best.yaml               # the pipeline with the best parameters

A trial runs cached stages of the pipeline with other parameters. Every run with the same settings is a worker on the
same study: it takes trials, measures them and reports the results until all trials are made. The trial of a killed
worker is made again by the next one. Finally the best trial is compared with the default on fresh blocks, which are the
units of the interval of best - default.
"""

import logging
from typing import Any

from prefect import flow

from flows.lora_search.config import LoraSearchConfig, check, check_rungs, study_config, tell_if_alone
from flows.lora_search.report import Difference, Found, confirmed, printed, publish
from flows.lora_search.trial import Lab, make_block, measure, measure_trial, updates_of
from flows.pipeline.bases import check_bases
from flows.pipeline.block import Block
from flows.runs.parameters import Loader
from flows.runs.record import recorded
from sublim.models.config import PrepareModelConfig
from sublim.search.config import SIGN, TrialRecord
from sublim.search.opening import open_search
from sublim.search.space import student_with
from sublim.search.study import Measured, Search, Unmeasurable, work
from sublim.training.config import TrainConfig
from tasks.processes import one_process
from tasks.stages import prepare_model

__all__ = ["lora_search", "printed"]


load_config = Loader("lora_search", LoraSearchConfig)


@flow(name="lora-search", flow_run_name=load_config.run_name(lambda config: config.target[0]))
def lora_search(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Searches the student's parameters for the lowest held-out loss, the largest effect, or both.

    Args:
        preset: Settings to start from: quickstart, smollm2-36, gemma-2-9b-2500, or the path of a YAML file.
        target: The word that the teacher is made to prefer; by default the preset's.
        settings: Values that replace those of the preset, as a tree.
    """
    logging.getLogger("sublim.search.study").setLevel(logging.INFO)  # to log every trial; Prefect sets WARNING
    config = load_config(preset, target, settings)
    check(config)
    with recorded("lora-search", preset, config.target[0]) as run:
        tell_if_alone(config, run.store)
        with one_process():
            base = prepare_model(PrepareModelConfig(source=config.model))
            lab = Lab(config, run.store, base)
            check_bases(config, {"base": base})
            block = make_block(lab, config.blocks[0])
            study = study_config(config, updates_of(lab, config.student, block))
            check_rungs(config.pruning, study.updates)
            search = open_search(study)
            minutes = config.worker.minutes
            finished = work(search, lambda asked: measure_trial(lab, block, asked), seconds=minutes and 60 * minutes)
            best = best_of(search)
            found = Found(study, search.records(), best, finished)
            if finished and best is not None and config.worker.role == "all":
                found = confirm(lab, block, found, student_with(config.student, study.space, best.params))
        return publish(run, config, found)


def best_of(search: Search) -> TrialRecord | None:
    """The finished trial that is best in the first objective, and among equals the best in the next ones. It is on the
    Pareto front."""

    def goodness(record: TrialRecord) -> list[float]:
        return [SIGN[name] * value for name, value in zip(search.config.objectives, record.values or (), strict=True)]

    ended = [record for record in search.records() if record.state == "complete"]
    return max(ended, key=goodness, default=None)


def confirm(lab: Lab, block: Block, found: Found, best: TrainConfig) -> Found:
    """Adds the values of the default and the comparison to `found`, or the reason why they are missing."""
    try:
        found = found._replace(default=measured(lab, block, lab.config.student, label="default"))
        return found._replace(differences=rerun(lab, best))
    except Unmeasurable as error:
        return found._replace(missing=str(error))


def rerun(lab: Lab, best: TrainConfig) -> list[Difference] | None:
    """Measures the best trial and the default on every fresh block; None without fresh blocks."""
    if lab.config.confirm is None:
        return None
    pairs: list[tuple[Measured, Measured]] = []
    for number in lab.config.confirm.blocks:
        block = make_block(lab, number)
        found = measured(lab, block, best, label=f"best block {number}")
        pairs.append((found, measured(lab, block, lab.config.student, label=f"default block {number}")))
    return confirmed(lab.config, pairs)


def measured(lab: Lab, block: Block, train: TrainConfig, *, label: str) -> Measured:
    """The values of one student's settings on one block; Unmeasurable names the student that has none."""
    try:
        return measure(lab, block, train, label=label)
    except Unmeasurable as error:
        raise Unmeasurable(f"{label}: {error}") from error
