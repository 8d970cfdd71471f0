"""Gathering a sweep: cells that differ only in seeds or block give one effect, and all effects one table."""

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

from flows.sweep.cells import COMPARED, Measured
from flows.sweep.config import TEACHER, SweepConfig
from flows.sweep.run_cells import Outcome
from sublim.core.digest import digest
from sublim.design.arms import ARMS, MAIN
from sublim.design.sweep_config import CellRecordConfig, SweepRow, SweepTableConfig
from sublim.evals.effect_config import CompareConfig
from sublim.evals.total_variation.config import CompareShiftConfig
from sublim.store.folder import Store
from sublim.store.manifest import Artifact, Manifest
from sublim.store.opening import open_store
from tasks.stages import compare, compare_mmlu_pro, compare_shift, record_cell, tabulate_sweep


class Group(NamedTuple):
    """The cells of one target, arm and grid point."""

    target: str
    arm: str
    grid: dict[str, Any]
    outcomes: list[Outcome]

    @property
    def missing(self) -> str | None:
        """How many cells failed, and why the first did; None if none failed."""
        failed = [each for each in self.outcomes if each.reason]
        if not failed:
            return None
        return f"{len(failed)} of {len(self.outcomes)} cells failed ({failed[0].cell.name}: {failed[0].reason})"

    @property
    def parts(self) -> list[tuple[int, Measured]]:
        """The comparisons of the group's own arm, each with the block of its pairs."""
        return [(each.cell.block, part) for each in self.outcomes for part in each.results if part.arm == self.arm]

    @property
    def updates(self) -> list[int | None]:
        """The checkpoints that have an effect."""
        found = {part.updates for _, part in self.parts if part.artifact.stage == "compare"}
        return sorted(found, key=lambda updates: updates or 0)


Gathered = dict[str, dict[str, Artifact]]
"""Comparisons by their stage, then by the name of the effect."""


def gather(config: SweepConfig, outcomes: list[Outcome]) -> Artifact:
    """Records every finished cell, joins the comparisons of cells that share an effect, and makes the table."""
    store = open_store()
    for each in outcomes:
        if each.results:
            named = {f"{part.artifact.stage} {part.arm} {part.updates}": part.artifact for part in each.results}
            record_cell(CellRecordConfig(name=each.cell.name), label=each.cell.name, comparisons=named)
    rows: list[SweepRow] = []
    found: Gathered = {stage: {} for stage in COMPARED}
    for group in groups(outcomes):
        made = _rows_of(group, store, found, config.level)
        if group.arm in config.arms:  # other arms were run only because `other_teacher` needs them
            rows += made
    if "other_teacher" in config.arms:
        rows += _other_teachers(config, outcomes, found["compare"])
    axes = tuple(dict.fromkeys(name for each in outcomes for name in each.cell.grid))
    table = SweepTableConfig(
        rows=tuple(rows), axes=axes, primary=config.primary, correction=config.correction, level=config.level
    )
    effects, capability, shifts = found.values()
    return tabulate_sweep(table, comparisons=effects, capability=capability, shifts=shifts)


def groups(outcomes: Iterable[Outcome]) -> list[Group]:
    """Outcomes, grouped so that the cells of a group differ only in seeds or block."""
    found: dict[str, Group] = {}
    for each in outcomes:
        cell = each.cell
        name = digest([cell.target, cell.arm, cell.grid])
        found.setdefault(name, Group(cell.target, cell.arm, cell.grid, [])).outcomes.append(each)
    return [*found.values()]


def name_of(target: str, arm: str, grid: dict[str, Any], updates: int | None) -> str:
    """The name of an effect among the inputs of the table."""
    return digest([target, arm, grid, updates])[:16]


def _rows_of(group: Group, store: Store, found: Gathered, level: float) -> list[SweepRow]:
    plan = MAIN if group.arm == TEACHER else ARMS[group.arm]  # pyright: ignore[reportArgumentType]
    blank = SweepRow(target=group.target, arm=group.arm, grid=group.grid, expected=plan.expected, reason=group.missing)
    rows: list[SweepRow] = []
    for updates in group.updates:
        name = name_of(group.target, group.arm, group.grid, updates)
        for stage, into in found.items():
            own = [(block, part.artifact) for block, part in group.parts if part.updates == updates]
            if parts := [(block, artifact) for block, artifact in own if artifact.stage == stage]:
                into[name] = joined(parts, store, f"{group.target} {group.arm} {updates or ''}".strip(), level)
        rows.append(blank.model_copy(update={"updates": updates, "comparison": name}))
    return rows or [blank]


def joined(parts: list[tuple[int, Artifact]], store: Store, label: str, level: float) -> Artifact:
    """One comparison of the pairs of all `parts`, which have a block each; a single part with the same confidence level
    is returned as it is."""
    manifests = [manifest_of(store, artifact) for _, artifact in parts]
    first, (_, artifact) = manifests[0], parts[0]
    if len(parts) == 1 and first.config.get("compare", first.config)["level"] == level:
        return artifact
    students = [each for manifest in manifests for each in listed_inputs(manifest, "students")]
    controls = [each for manifest in manifests for each in listed_inputs(manifest, "controls")]
    teachers = {each.key: each for manifest in manifests for each in listed_inputs(manifest, "teacher")}
    blocks = [
        block for (block, _), found in zip(parts, manifests, strict=True) for _ in listed_inputs(found, "students")
    ]
    shared = CompareConfig(blocks=tuple(blocks) if len({*blocks}) > 1 else (), level=level)
    base = Artifact.model_validate(first.inputs["base"])
    if artifact.stage == "compare_shift":
        config = CompareShiftConfig(words=first.config["words"], compare=shared)
        return compare_shift(config, label=label, students=students, controls=controls, base=base)
    stage = compare if artifact.stage == "compare" else compare_mmlu_pro
    return stage(
        shared, label=label, students=students, controls=controls, base=base, teacher=[*teachers.values()] or None
    )


def manifest_of(store: Store, artifact: Artifact) -> Manifest:
    """The manifest of an artifact that is in the store."""
    manifest = store.manifest(artifact.stage, artifact.key)
    assert manifest is not None
    return manifest


def listed_inputs(manifest: Manifest, name: str) -> list[Artifact]:
    """The artifacts that a stage was given under one name; none if it was given none."""
    value = manifest.inputs.get(name) or []
    return [Artifact.model_validate(each) for each in (value if isinstance(value, list) else [value])]


def _other_teachers(config: SweepConfig, outcomes: list[Outcome], comparisons: dict[str, Artifact]) -> list[SweepRow]:
    """The rows of the arm `other_teacher`: students of one target's teacher, scored for another target.

    That score is in the comparison of the students' own target, among its other words.
    """
    expected = ARMS["other_teacher"].expected
    if len(config.target) < 2:
        reason = "it needs a second target"
        return [SweepRow(target=next(iter(config.target)), arm="other_teacher", expected=expected, reason=reason)]
    rows: list[SweepRow] = []
    for group in groups(outcomes):
        others = [target for target in config.target if target != group.target and group.arm == TEACHER]
        for target, updates in product(others, group.updates or [None]):
            name = name_of(group.target, TEACHER, group.grid, updates)
            rows.append(
                SweepRow(
                    target=target,
                    arm="other_teacher",
                    of=group.target,
                    updates=updates,
                    grid=group.grid,
                    expected=expected,
                    comparison=name if name in comparisons else None,
                    reason=group.missing,
                )
            )
    return rows
