"""Gathering a sweep: cells that differ only in seeds or block give one effect, and all effects one table."""

from collections.abc import Iterable
from typing import Any, NamedTuple

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


Gathered = dict[str, dict[str, Artifact]]
"""Comparisons by field of `Results`, then by the name of the effect."""


class Part(NamedTuple):
    """One comparison of a cell, and the block of its pairs."""

    artifact: Artifact
    block: int


def gather(config: SweepConfig, outcomes: list[Outcome]) -> Artifact:
    """Records every finished cell, joins the comparisons of cells that share an effect, and makes the table."""
    store = open_store()
    for each in outcomes:
        if each.results:
            parts = [part for kind in each.results for part in kind]
            named = {f"{part.artifact.stage} {part.arm} {part.updates}": part.artifact for part in parts}
            record_cell(CellRecordConfig(name=each.cell.name), label=each.cell.name, comparisons=named)
    rows: list[SweepRow] = []
    found: Gathered = {"effects": {}, "capability": {}, "shifts": {}}
    for group in groups(outcomes):
        made = _rows_of(group, store, found, config.level)
        if group.arm in config.arms:  # other arms were run only because `other_teacher` needs them
            rows += made
    if "other_teacher" in config.arms:
        rows += _other_teachers(config, outcomes, found["effects"])
    axes = tuple(dict.fromkeys(name for each in outcomes for name in each.cell.grid))
    table = SweepTableConfig(
        rows=tuple(rows), axes=axes, primary=config.primary, correction=config.correction, level=config.level
    )
    return tabulate_sweep(table, comparisons=found["effects"], capability=found["capability"], shifts=found["shifts"])


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
    done = [(each.cell, each.results) for each in group.outcomes if each.results]
    measured = {part.updates for _, results in done for part in results.effects if part.arm == group.arm}
    if not measured:
        return [blank]
    rows: list[SweepRow] = []
    for updates in sorted(measured, key=lambda at: at or 0):
        name = name_of(group.target, group.arm, group.grid, updates)
        for kind, into in found.items():
            parts = [
                Part(part.artifact, cell.block)
                for cell, results in done
                for part in getattr(results, kind)
                if (part.arm, part.updates) == (group.arm, updates)
            ]
            if parts:
                into[name] = joined(parts, store, f"{group.target} {group.arm} {updates or ''}".strip(), level)
        rows.append(blank.model_copy(update={"updates": updates, "comparison": name}))
    return rows


def joined(parts: list[Part], store: Store, label: str, level: float) -> Artifact:
    """One comparison of the pairs of all `parts`; a single part with the same confidence level is returned as it is."""
    manifests = [_manifest(store, part.artifact) for part in parts]
    if len(parts) == 1 and _level(manifests[0]) == level:
        return parts[0].artifact
    students = [each for manifest in manifests for each in _listed(manifest, "students")]
    controls = [each for manifest in manifests for each in _listed(manifest, "controls")]
    pairs = [part.block for part, manifest in zip(parts, manifests, strict=True) for _ in _listed(manifest, "students")]
    teachers = {each.key: each for manifest in manifests for each in _listed(manifest, "teacher")}
    shared = CompareConfig(blocks=tuple(pairs) if len({*pairs}) > 1 else (), level=level)
    first = next(iter(manifests))
    base = Artifact.model_validate(first.inputs["base"])
    if parts[0].artifact.stage == "compare_shift":
        words = CompareShiftConfig.model_validate(first.config).words
        config = CompareShiftConfig(words=words, compare=shared)
        return compare_shift(config, label=label, students=students, controls=controls, base=base)
    stage = compare if parts[0].artifact.stage == "compare" else compare_mmlu_pro
    return stage(
        shared, label=label, students=students, controls=controls, base=base, teacher=[*teachers.values()] or None
    )


def _manifest(store: Store, artifact: Artifact) -> Manifest:
    manifest = store.manifest(artifact.stage, artifact.key)
    assert manifest is not None
    return manifest


def _level(manifest: Manifest) -> float:
    return manifest.config.get("compare", manifest.config)["level"]


def _listed(manifest: Manifest, name: str) -> list[Artifact]:
    value = manifest.inputs.get(name)
    if value is None:
        return []
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
    main = [group for group in groups(outcomes) if group.arm == TEACHER]
    for group in main:
        updates = {part.updates for each in group.outcomes if each.results for part in each.results.effects}
        for target in (word for word in config.target if word != group.target):
            blank = SweepRow(
                target=target, arm="other_teacher", of=group.target, grid=group.grid, expected=expected
            ).model_copy(update={"reason": group.missing})
            for at in sorted(updates, key=lambda value: value or 0):
                name = name_of(group.target, TEACHER, group.grid, at)
                rows.append(
                    blank.model_copy(update={"updates": at, "comparison": name if name in comparisons else None})
                )
            if not updates:
                rows.append(blank)
    return rows
