"""The cells of a sweep: the configs of their pipelines, and their results where the store has them."""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

from flows.pipeline.checks import check as check_pipeline
from flows.pipeline.config import PipelineConfig
from flows.runs.fields import full_path
from flows.runs.settings import Tree, build, load_preset, merge, tree_of
from flows.sweep.config import TEACHER, Pool, SweepConfig
from sublim.core.digest import digest
from sublim.core.errors import UserError
from sublim.design.arms import ARMS
from sublim.files.whole_files import write_whole
from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from tasks.stage import NotThere, looking_up
from tasks.stages import PIPELINE

HERE = "here"
COMPARED = ("compare", "compare_mmlu_pro", "compare_shift")
"""The stages whose payloads a sweep gathers: effects, scores on MMLU-Pro, and shifts."""


class Cell(NamedTuple):
    """One pipeline of the grid."""

    target: str
    arm: str
    grid: dict[str, Any]
    """Values of the further axes, by the full names of their settings."""
    block: int
    seeds: tuple[int, ...]
    settings: Tree
    """Settings that replace those of the preset."""
    config: PipelineConfig
    """The settings of the plan."""

    @property
    def ran(self) -> PipelineConfig:
        """The pipeline that runs: without a comparison target by rule, since a sweep's targets have cells each."""
        return self.config.model_copy(update={"against": self.config.against or ()})

    @property
    def name(self) -> str:
        """Name of the cell in tables and in the UI."""
        axes = [f"{name.rpartition('.')[2]} {value}" for name, value in self.grid.items()]
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        name = ", ".join([self.target, self.arm, *axes, f"block {self.block}", seeds])
        return name.replace("{", "(").replace("}", ")")  # Prefect treats braces in a name as placeholders


class Measured(NamedTuple):
    """One comparison of a cell's pipeline."""

    arm: str
    updates: int | None
    artifact: Artifact


def cells_of(config: SweepConfig) -> list[Cell]:
    """The cells in the order in which they run. Raises UserError when the settings of a cell are not valid."""
    base = merge(load_preset("pipeline", config.preset), config.settings)
    axes = {full_path(PipelineConfig, name): values for name, values in config.grid.items()}
    together = config.seeds_per_cell or (1 if isinstance(config.where, Pool) else len(config.seeds))
    chunks = [config.seeds[at : at + together] for at in range(0, len(config.seeds), together)]
    found: list[Cell] = []
    for values in product(*axes.values()):
        grid = dict(zip(axes, values, strict=True))
        for target, arm, block, seeds in product(config.target, cell_arms(config), config.blocks, chunks):
            own = {"target": [target], "arms": [] if arm == TEACHER else [arm], "seeds": [*seeds], "blocks": [block]}
            settings = merge(merge(config.settings, own), tree_of(grid))
            planned = build(PipelineConfig, merge(base, settings))
            alone = {"against": [*(planned.against or ())]}
            found.append(Cell(target, arm, grid, block, seeds, merge(settings, alone), planned))
    return found


def cell_arms(config: SweepConfig) -> list[str]:
    """The arms with cells of their own. `other_teacher` has none: it compares students from other targets' cells."""
    arms = [arm for arm in config.arms if arm != "other_teacher"]
    return arms if "other_teacher" not in config.arms or TEACHER in arms else [TEACHER, *arms]


def check_cells(cells: Iterable[Cell]) -> None:
    """Raises UserError, with the name of the cell, when it is already known that a cell cannot run."""
    for cell in cells:
        try:
            check_pipeline(cell.ran)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from error


def cell_digest(cell: Cell, where: str) -> str:
    """The name under which a cell's results are noted: a digest of its config, the stages' versions and where it runs.

    `auto` settings are resolved only for cells that run here, because the machines of a pool are not known.
    """
    config = cell.config.resolved() if where == HERE else cell.config
    return digest({"config": config, "versions": {stage.name: stage.version for stage in PIPELINE}, "where": where})


def known(store: Store, cell: Cell, config: SweepConfig) -> list[Measured] | None:
    """The results of a cell, if an earlier sweep noted them or, for cells that run here, if the store has them all."""
    found = remembered(store, cell_digest(cell, where_of(config)))
    return found or (None if isinstance(config.where, Pool) else looked_up(cell))


def where_of(config: SweepConfig) -> str:
    """Where the cells run: the name of a deployment, or HERE."""
    return config.where.deployment if isinstance(config.where, Pool) else HERE


def looked_up(cell: Cell) -> list[Measured] | None:
    """The results of a cell if the store has all its stages; nothing is run and no Prefect server is used."""
    from flows.pipeline.flow import conduct

    try:
        with looking_up():
            study = conduct(cell.ran)
    except NotThere:
        return None
    found = [*study.comparisons, *study.capability, *study.shifts]
    return results_of((each.label, each.artifact) for each in found)


def results_of(compared: Iterable[tuple[str, Artifact]]) -> list[Measured]:
    """The results stage by stage, with arm and updates taken from the labels that the pipeline gives its
    comparisons."""
    found: list[Measured] = []
    for label, artifact in compared:
        _, *words = label.split()
        updates = int(words.pop()) if words and words[-1].isdigit() else None
        arm = words[0] if words and words[0] in ARMS else TEACHER
        found.append(Measured(arm, updates, artifact))
    return sorted(found, key=lambda each: COMPARED.index(each.artifact.stage))


def remembered(store: Store, name: str) -> list[Measured] | None:
    """The results noted under `name`, if all their artifacts are intact."""
    path = _memo(store, name)
    if not path.exists():
        store.refresh(path.relative_to(store.root).as_posix())
    if not path.exists():
        return None
    noted = [(label, Artifact.model_validate(each)) for label, each in json.loads(path.read_text(encoding="utf-8"))]
    return results_of(noted) if all(store.find(each.stage, each.key) == each for _, each in noted) else None


def remember(store: Store, name: str, compared: Iterable[tuple[str, Artifact]]) -> None:
    """Notes the comparisons of a cell's run under `name`, so that the next sweep finds them at once."""
    path = _memo(store, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([[label, artifact.model_dump()] for label, artifact in compared]))
    store.share(path)


def _memo(store: Store, name: str) -> Path:
    return store.root / "runs" / "cells" / f"{name[:32]}.json"


def compared_by(store: Store, flow_run_id: str) -> list[tuple[str, Artifact]]:
    """The comparisons of a pipeline run with their labels, from the run's record in the store."""
    pattern = f"runs/*-{flow_run_id[:6]}/run.json"
    store.refresh(pattern)
    for path in store.root.glob(pattern):
        record = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        if record["flow_run"] == flow_run_id:
            return [
                (stage["label"], Artifact(content=stage["content"], stage=stage["stage"], key=stage["key"]))
                for stage in record["stages"]
                if stage["stage"] in COMPARED and stage["content"]
            ]
    return []
