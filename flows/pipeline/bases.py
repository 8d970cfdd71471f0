"""The bases of a pipeline run: prepared, and tried for what the run will ask of them, before anything else."""

from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import BaseName
from flows.pipeline.plan import adapted, base_needs, start_rows_config
from sublim.bases.needs_config import CheckBaseConfig
from sublim.models.config import PrepareModelConfig
from sublim.store.manifest import Artifact
from tasks.stages import check_base, make_start, prepare_model, rule_lists


def prepare_bases(config: PipelineConfig) -> dict[BaseName, Artifact]:
    """The base, or the start that stands for it, and, where an arm needs one, the other base."""
    prepared = prepare_model(PrepareModelConfig(source=config.model))
    bases: dict[BaseName, Artifact] = {"base": begin(config, prepared)}
    if "other_base" in config.arms_run:
        bases["other_base"] = prepare_model(PrepareModelConfig(source=config.other_base), label="other base")
    return bases


def begin(config: PipelineConfig, base: Artifact) -> Artifact:
    """The start of the run; the base itself for settings without one."""
    if config.start is None:
        return base
    check_base(base_needs(config), label="before the start", base=base)  # what it lacks, a start would lack too
    lists = rule_lists(start_rows_config(config, config.start), label="start")
    return make_start(config.start.train, label="start", base=base, data=lists)


def check_bases(config: PipelineConfig, bases: dict[BaseName, Artifact], *, students: bool = True) -> None:
    """Tries what this run will ask of its bases, before anything is made with them."""
    check_base(base_needs(config, students=students), base=bases["base"])
    if "other_base" in bases:
        modules = CheckBaseConfig(target_modules=adapted(config.student))
        check_base(modules, label="other base", base=bases["other_base"])
