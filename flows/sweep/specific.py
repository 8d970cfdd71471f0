"""Specific effects of a sweep: the students of its targets' teachers beside each other, from their cells' scores."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows.pipeline.study import read
from flows.sweep.config import TEACHER, SweepConfig
from flows.sweep.gather import Group, groups, listed_inputs, manifest_of
from flows.sweep.run_cells import Outcome
from sublim.core.digest import digest
from sublim.evals.effect_config import CompareConfig
from sublim.evals.specificity.config import CompareTargetsConfig, Specificity
from sublim.report.files import write_svg
from sublim.report.page import FigureFile, Table, bounded
from sublim.report.shown import SpecificShown
from sublim.report.specific import gamma_json, p_told, point_json, target_map
from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from tasks.stages import compare_targets


class GridPoint(NamedTuple):
    """The specific effects of all targets at one point of the grid and one checkpoint, or why there are none."""

    grid: dict[str, Any]
    updates: int | None
    shown: SpecificShown | None
    reason: str | None

    @property
    def name(self) -> str:
        """Its place in the grid, in words."""
        axes = [f"{name.rpartition('.')[2]} {value}" for name, value in self.grid.items()]
        return ", ".join([*axes, *([f"{self.updates} updates"] if self.updates else [])])

    def json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        place: dict[str, Any] = {"grid": self.grid, "updates": self.updates, "reason": self.reason}
        table = self.shown.found.metrics.get("margin") if self.shown else None
        if self.shown is None or table is None:
            return place | {"gamma": None, "targets": {}, "table": None}
        targets = {target: point_json(self.shown, target) for target in table.targets}
        return place | {"gamma": gamma_json(table, self.shown), "targets": targets, "table": table.table}

    def finding(self) -> str:
        """γ in one line, then every target's specific effect."""
        place = f" ({self.name})" if self.name else ""
        table = self.shown.found.metrics.get("margin") if self.shown else None
        if self.shown is None or table is None:
            return f"specific effects{place}: missing: {self.reason}"
        gamma = table.gamma
        own = ", ".join(
            f"{target} {bounded(each.specific.estimate, each.specific.low, each.specific.high)}"
            for target, each in table.targets.items()
        )
        return (
            f"γ over {', '.join(table.targets)}{place}: {bounded(gamma.estimate, gamma.low, gamma.high)} nats, "
            f"{p_told(table.permutation)}; specific: {own}. {self.shown.found.about_units}"
        )


def specific_effects(config: SweepConfig, outcomes: Iterable[Outcome], store: Store) -> list[GridPoint]:
    """The main arm's students of all targets beside each other; nothing for a sweep of one target."""
    if len(config.target) < 2:
        return []
    at: dict[str, list[Group]] = {}
    for group in groups(outcomes):
        if group.arm == TEACHER:
            at.setdefault(digest(group.grid), []).append(group)
    return [
        _point(config, same, updates, store)
        for same in at.values()
        for updates in dict.fromkeys(each for group in same for each in group.updates) or [None]
    ]


def _point(config: SweepConfig, same: Sequence[Group], updates: int | None, store: Store) -> GridPoint:
    grid, first = same[0].grid, same[0].outcomes[0].cell.config
    if unlisted := [target for target in config.target if target not in first.words]:
        reason = f"{', '.join(unlisted)} not among the listed words, so other targets' cells did not ask for it"
        return GridPoint(grid, updates, None, reason)
    if failed := next((group.missing for group in same if group.missing), None):
        return GridPoint(grid, updates, None, failed)
    parts = [_parts(group, updates) for group in same]
    blocks = [block for each in same[0].outcomes for block in [each.cell.block] * len(each.cell.seeds)]
    chosen = CompareTargetsConfig(
        targets=tuple(group.target for group in same),
        words=tuple(first.words),
        compare=CompareConfig(blocks=tuple(blocks) if len({*blocks}) > 1 else (), level=config.level),
    )
    teachers = [[*dict.fromkeys(_inputs(own, store, "teacher"))] for own in parts]
    label = " ".join([*chosen.targets, *map(str, grid.values()), *([str(updates)] if updates else [])])
    made = compare_targets(
        chosen,
        label=label,
        students=[each for own in parts for each in _inputs(own, store, "students")],
        controls=[each for own in parts for each in _inputs(own, store, "controls")],
        teachers=[each for own in teachers for each in own] or None,
    )
    shown = SpecificShown(updates=updates, found=read(Specificity, store, made, "specificity.json"))
    return GridPoint(grid, updates, shown, shown.found.missing.get("margin"))


def _parts(group: Group, updates: int | None) -> list[Artifact]:
    """The comparisons of a group's cells at one checkpoint, in the order of its cells."""
    found = [part for _, part in group.parts if part.updates == updates]
    return [part.artifact for part in found if part.artifact.stage == "compare"]


def _inputs(comparisons: Iterable[Artifact], store: Store, name: str) -> list[Artifact]:
    """What several comparisons were given under one name: scores, which hold all listed words."""
    return [each for artifact in comparisons for each in listed_inputs(manifest_of(store, artifact), name)]


def specific_maps(folder: Path, points: Iterable[GridPoint]) -> Iterator[FigureFile]:
    """Students by targets at every point, as SVG files in `folder`."""
    for place, point in enumerate(points):
        table = point.shown.found.metrics.get("margin") if point.shown else None
        if table is not None:
            figure = target_map(table, ", ".join(filter(None, ("Students by targets", point.name))))
            path = folder / f"specific-{place}.svg"
            write_svg(path, figure)
            yield FigureFile(path, f"{figure.name}. {figure.caption}")


def specific_table(points: Sequence[GridPoint]) -> Table:
    """Total, generic and specific effect of every target at every point."""
    rows: list[list[str]] = []
    for point in points:
        table = point.shown.found.metrics.get("margin") if point.shown else None
        if table is None:
            rows.append([point.name or "all", "–", f"missing: {point.reason}", "–", "–", "–"])
            continue
        for target, each in table.targets.items():
            told = [bounded(e.estimate, e.low, e.high, 3) for e in (each.specific, each.generic, each.total)]
            rank = f"{each.rank_total.rank} of {each.rank_total.of}"
            rows.append([point.name or "all", target, *told, rank])
        gamma = table.gamma
        rows.append(
            [
                point.name or "all",
                "γ",
                bounded(gamma.estimate, gamma.low, gamma.high, 3),
                "–",
                "–",
                p_told(table.permutation),
            ]
        )
    return Table(
        "Specific effects: students against those of the other targets' teachers, nats",
        ("at", "target", "specific", "generic", "total", "placebo rank"),
        rows,
        "Total is student minus control, generic what the students of the other teachers do, specific the difference.",
    )
