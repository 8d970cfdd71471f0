"""The lineage figure: all stages of a run, from the base weights at the left to the report's numbers at the right."""

from collections.abc import Mapping, Sequence
from functools import cache
from graphlib import TopologicalSorter

from markupsafe import Markup

from sublim.plots.svg import group, line, rectangle, shorten, svg, text
from sublim.report.shown import Edge, StageShown

BOX = (132, 36)
"""Width and height of a stage's box, in pixels."""
GAP = (24, 10)
"""Horizontal and vertical distance between boxes."""
MOST_STAGES = 120
"""A run with more stages has no figure, because it could not be read."""


def lineage_plot(stages: Sequence[StageShown], edges: Sequence[Edge]) -> Markup | None:
    """Stages as boxes in columns, with a line from each output to the stages that read it.

    A line that a longer path replaces is left out, because nearly every stage reads the base. Returns None where there
    are no edges or too many stages.
    """
    by_key = {stage.key: stage for stage in stages}
    if not edges or len(by_key) > MOST_STAGES:
        return None
    parents = direct(parents_of(by_key, edges))
    columns = layers(parents)
    parents = reserve(columns, parents)
    places: dict[str, tuple[float, float]] = {}
    height = max(len(column) for column in columns) * (BOX[1] + GAP[1]) + 8
    for across, column in enumerate(columns):
        column.sort(key=lambda key: middle(places, parents[key]))
        top = (height - len(column) * (BOX[1] + GAP[1]) + GAP[1]) / 2
        for down, key in enumerate(column):
            places[key] = (4 + across * (BOX[0] + GAP[0]), top + down * (BOX[1] + GAP[1]))
    parts = [_link(places[parent], places[key]) for key, found in parents.items() for parent in found]
    parts += [_box(by_key[key], *place) if key in by_key else _passage(place) for key, place in places.items()]
    title = f"Lineage of {len(by_key)} stages in {len(columns)} steps. The table below lists them."
    return svg(len(columns) * (BOX[0] + GAP[0]) - GAP[0] + 8, height, title, parts)


def parents_of(stages: Mapping[str, StageShown], edges: Sequence[Edge]) -> dict[str, list[str]]:
    """For each stage the stages whose output it read, each once, in the order of the edges."""
    known = dict.fromkeys((edge.source, edge.target) for edge in edges if edge.source in stages)
    return {key: [source for source, target in known if target == key] for key in stages}


def layers(parents: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Stages in columns by their longest path to the end, so that the same stage of all arms is in one column."""
    children = {key: [child for child, found in parents.items() if key in found] for key in parents}
    sorter = TopologicalSorter(children)
    sorter.prepare()
    columns: list[list[str]] = []
    while ready := sorter.get_ready():
        columns.insert(0, [key for key in parents if key in ready])
        sorter.done(*ready)
    return columns


def direct(parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """`parents` without those from which another parent was made (the transitive reduction)."""

    @cache
    def above(key: str) -> set[str]:
        return set(parents[key]).union(*map(above, parents[key]))

    return {
        key: [parent for parent in found if not any(parent in above(other) for other in found)]
        for key, found in parents.items()
    }


def reserve(columns: list[list[str]], parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """`parents` with every line cut into steps of one column. The places it passes are added to `columns`.

    Without a place of its own, a line would pass behind another stage's box and seem to start there.
    """
    column_of = {key: place for place, column in enumerate(columns) for key in column}
    steps: dict[str, list[str]] = {key: [] for key in parents}
    for key, found in parents.items():
        for parent in found:
            before = parent
            for place in range(column_of[parent] + 1, column_of[key]):
                passage = f"{parent} to {key} at {place}"
                columns[place].append(passage)
                steps[passage] = [before]
                before = passage
            steps[key].append(before)
    return steps


def middle(places: Mapping[str, tuple[float, float]], parents: Sequence[str]) -> float:
    """The parents' mean height in pixels. Columns are sorted by it, so that few lines cross."""
    return sum(places[parent][1] for parent in parents) / len(parents) if parents else 0.0


def _link(source: tuple[float, float], target: tuple[float, float]) -> Markup:
    x1, y1 = source[0] + BOX[0], source[1] + BOX[1] / 2
    x2, y2 = target[0], target[1] + BOX[1] / 2
    bend = min(GAP[0] / 2 + (x2 - x1 - GAP[0]) / 3, 60)
    return Markup('<path d="M{:.1f},{:.1f} C{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}" class="link"/>').format(
        x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2
    )


def _passage(place: tuple[float, float]) -> Markup:
    x, y = place[0], place[1] + BOX[1] / 2
    return line(x, y, x + BOX[0], y, "link")


def _box(stage: StageShown, x: float, y: float) -> Markup:
    return group(
        f"{stage.stage} {stage.label} · {stage.state} · {stage.key}",
        rectangle(x, y, *BOX, f"box {stage.state.lower()}"),
        text(x + 8, y + 15, shorten(stage.stage, 18), "box-name"),
        text(x + 8, y + 28, shorten(stage.label or stage.key[:12], 23), "box-label"),
    )
