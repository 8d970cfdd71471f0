"""The cells of a sweep: one pipeline each, found in the store, run here, or handed to a work pool."""

import json
from collections.abc import Iterable, Iterator
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
"""Stages whose payloads a sweep gathers, in the order of `Results`."""


class Cell(NamedTuple):
    """One pipeline of the grid."""

    target: str
    arm: str
    grid: dict[str, Any]
    """The values of the further axes, by full name."""
    block: int
    seeds: tuple[int, ...]
    settings: Tree
    """What is laid over the preset."""
    config: PipelineConfig

    @property
    def name(self) -> str:
        """As it is called in tables and in the UI."""
        axes = [f"{name.rpartition('.')[2]} {value}" for name, value in self.grid.items()]
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        name = ", ".join([self.target, self.arm, *axes, f"block {self.block}", seeds])
        return name.replace("{", "(").replace("}", ")")  # Prefect would fill in a name's braces


class Measured(NamedTuple):
    """What one cell's pipeline compared."""

    arm: str
    updates: int | None
    artifact: Artifact


class Results(NamedTuple):
    """A finished cell."""

    effects: list[Measured]
    """Payloads of `compare`."""
    capability: list[Measured]
    """Payloads of `compare_mmlu_pro`."""
    shifts: list[Measured]
    """Payloads of `compare_shift`."""


def cells_of(config: SweepConfig) -> list[Cell]:
    """The cells in the order in which they run. Raises UserError for one that cannot be built."""
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
            found.append(Cell(target, arm, grid, block, seeds, settings, build(PipelineConfig, merge(base, settings))))
    return found


def cell_arms(config: SweepConfig) -> list[str]:
    """Arms that train or compare something of their own: another target's teacher is judged by that target's cells."""
    arms = [arm for arm in config.arms if arm != "other_teacher"]
    return arms if "other_teacher" not in config.arms or TEACHER in arms else [TEACHER, *arms]


def check_cells(cells: Iterable[Cell]) -> None:
    """Raises UserError for what can be known to go wrong in any cell, and names it."""
    for cell in cells:
        try:
            check_pipeline(cell.config)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from error


def cell_digest(cell: Cell, where: str) -> str:
    """Under which name a cell's results are remembered: its config, the stages' versions, where it runs.

    What `auto` means is known of this machine, and of a pool's only that its machines are alike.
    """
    config = cell.config.resolved() if where == HERE else cell.config
    return digest({"config": config, "versions": {stage.name: stage.version for stage in PIPELINE}, "where": where})


def where_of(config: SweepConfig) -> str:
    """Where the cells run: a deployment, or this process."""
    return config.where.deployment if isinstance(config.where, Pool) else HERE


def looked_up(cell: Cell) -> Results | None:
    """The results of a cell whose every stage is in the store, found without running or asking anything."""
    from flows.pipeline.flow import conduct

    try:
        with looking_up():
            study = conduct(cell.config)
    except NotThere:
        return None
    found = [*study.comparisons, *study.capability, *study.shifts]
    return results_of((each.label, each.artifact) for each in found)


def results_of(compared: Iterable[tuple[str, Artifact]]) -> Results:
    """Results by arm and update, from the labels that the pipeline gives its comparisons."""
    found: dict[str, list[Measured]] = {stage: [] for stage in COMPARED}
    for label, artifact in compared:
        _, *words = label.split()
        updates = int(words.pop()) if words and words[-1].isdigit() else None
        arm = words[0] if words and words[0] in ARMS else TEACHER
        found[artifact.stage].append(Measured(arm, updates, artifact))
    return Results(*found.values())


def remembered(store: Store, name: str) -> Results | None:
    """The results noted under `name`, if every artifact they rest on is intact."""
    path = _memo(store, name)
    if not path.exists():
        store.refresh(path.relative_to(store.root).as_posix())
    if not path.exists():
        return None
    noted = [(label, Artifact.model_validate(each)) for label, each in json.loads(path.read_text(encoding="utf-8"))]
    return results_of(noted) if all(store.find(each.stage, each.key) == each for _, each in noted) else None


def remember(store: Store, name: str, compared: Iterable[tuple[str, Artifact]]) -> None:
    """Notes what a cell's run compared, so that the next sweep finds it at once."""
    path = _memo(store, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([[label, artifact.model_dump()] for label, artifact in compared]))
    store.share(path)


def _memo(store: Store, name: str) -> Path:
    return store.root / "runs" / "cells" / f"{name[:32]}.json"


def compared_by(store: Store, flow_run_id: str) -> list[tuple[str, Artifact]]:
    """The comparisons of a pipeline run, by label, from its record in the store."""
    pattern = f"runs/*-{flow_run_id[:6]}/run.json"
    store.refresh(pattern)
    for path in store.root.glob(pattern):
        record = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        if record["flow_run"] == flow_run_id:
            return list(_comparisons(record["stages"]))
    return []


def _comparisons(stages: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Artifact]]:
    for stage in stages:
        if stage["stage"] in COMPARED and stage["content"]:
            yield stage["label"], Artifact(content=stage["content"], stage=stage["stage"], key=stage["key"])
