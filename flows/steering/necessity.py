"""Necessity in the student: its component along a direction is replaced by the base's, and controls hold as much."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.pipeline.plan import ask_config
from flows.pipeline.study import TrainedModels
from flows.runs.record import Run
from flows.steering.config import SteeringFlowConfig
from flows.steering.plan import curve_config, dtype_of, sweep_config
from sublim.core.config import Config
from sublim.report.page import Table, bounded
from sublim.residual.edits import Edit, Steering
from sublim.steering.dose_curve_config import SteeredPoint
from sublim.steering.energy_config import OWN, Energies, EnergyConfig
from sublim.store.manifest import Artifact
from tasks.stages import change_directions, steering_curve, sweep


class Student(NamedTuple):
    """A trained student whose component is replaced."""

    study: TrainedModels
    pair: int
    update: int
    """Checkpoint; 0 for the last."""
    vectors: Artifact
    """v_student and random vectors."""
    beside: dict[str, Artifact]
    """v_control and the other teachers' vectors, by direction."""


class Replaced(NamedTuple):
    """What replacing each direction does to one student, and how much of its change each holds."""

    curve: Artifact
    directions: Artifact


class NecessityShown(Config):
    """One direction of a student replaced by the base's at one layer."""

    layer: int
    direction: str
    """v_student, v_control, teacher-wolf, component-0, components (the first few together), random-0."""
    share: float
    """How much of the student's change it holds: the squared length along it over the whole, at the tokens of the
    evaluation's questions."""
    cosine: float
    """Absolute cosine with v_student."""
    estimate: float | None
    """Change of the target's margin in nats."""
    low: float | None
    high: float | None
    reason: str | None


def replace(run: Run, config: SteeringFlowConfig, target: str, layers: tuple[int, ...], student: Student) -> Replaced:
    """Replaces v_student and every control, layer by layer."""
    study, weights = student.study, student.study.students[target][student.pair]
    asked, base = ask_config(config.pipeline), study.bases["base"]
    settings = EnergyConfig(
        sites=(config.site,),
        layers=layers,
        dtype=dtype_of(config),
        questions=tuple(asked.questions),
        word=target,
        weights_update=student.update or None,
    )
    directions = change_directions(
        settings,
        label=f"{target} student {student.pair}",
        base=base,
        weights=weights,
        vectors=student.vectors,
        controls=student.beside,
    )
    rows = read_energies(run.store.payload(directions)).rows
    points = tuple(Steering(edits=tuple(Edit(vector=name, kind="replace") for name in row.vectors)) for row in rows)
    settings = sweep_config(config, points, samples=0, update=student.update or None)
    label = f"{target} student {student.pair} without a direction"
    swept = sweep(settings, label=label, base=base, vectors=directions, weights=weights)
    curve = steering_curve(curve_config(config, target), label=f"necessity {student.pair}", swept=swept)
    return Replaced(curve, directions)


def read_energies(payload: Path) -> Energies:
    """What a payload of `change_directions` says of its vectors."""
    return Energies.model_validate_json((payload / "energies.json").read_bytes())


def necessity_rows(directions: Path, points: Sequence[SteeredPoint]) -> list[NecessityShown]:
    """Every direction with its share of the change and what replacing it did."""
    rows: list[NecessityShown] = []
    steered = [point for point in points if point.layers]
    for energy, point in zip(read_energies(directions).rows, steered, strict=True):
        assert energy.vectors == point.vectors
        found = point.model_dump(include={"estimate", "low", "high", "reason"})
        rows.append(NecessityShown.model_validate(energy.model_dump(exclude={"vectors"}) | found))
    return rows


def is_random(row: NecessityShown) -> bool:
    """Whether the direction is a random one."""
    return row.direction.startswith("random-")


def necessity_findings(pair: int, rows: Sequence[NecessityShown]) -> Iterator[str]:
    """What replacing v_student does at the layer where it does most, beside every control there, and at how many layers
    it does more than all controls that hold at least half as much."""
    own = {row.layer: row for row in rows if row.direction == OWN and row.estimate is not None}
    if lost := [row for row in rows if row.estimate is None]:
        yield f"replacing a direction (student {pair}): {len(lost)} could not be measured: {lost[0].reason}"
    if not own:
        return
    most = min(own.values(), key=lambda row: row.estimate or 0)
    there = [row for row in rows if row.layer == most.layer and row is not most and row.estimate is not None]
    beside = "; ".join(f"{row.direction} {_told(row)}" for row in there if not is_random(row))
    yield (
        f"replacing v_student (student {pair}) does most at layer {most.layer}, of {len(own)} layers: {_told(most)}; "
        f"controls there: {beside}; {_random_told([row for row in there if is_random(row)])}"
    )
    fair = {
        layer: [
            row.estimate
            for row in rows
            if row.layer == layer and row.direction != OWN and row.estimate is not None and row.share >= each.share / 2
        ]
        for layer, each in own.items()
    }
    tried = [layer for layer in own if fair[layer]]
    beyond = sum((own[layer].estimate or 0) < min(fair[layer]) for layer in tried)
    yield (
        f"v_student (student {pair}) does more than every control that holds at least half as much of the student's "
        f"change at {beyond} of {len(tried)} layers that have such a control"
    )


def _told(row: NecessityShown) -> str:
    return f"{bounded(row.estimate or 0, row.low, row.high)} nats ({100 * row.share:.1f} % of the student's change)"


def _random_told(rows: Sequence[NecessityShown]) -> str:
    """Random directions together: they hold next to nothing, and are no control of equal energy."""
    known = [row.estimate for row in rows if row.estimate is not None]
    if not known:
        return "no random directions"
    shares = [100 * row.share for row in rows]
    held = f"{min(shares):.2g} to {max(shares):.2g} % of the change"
    return f"{len(known)} random directions ({held}: no control of equal energy) {min(known):+.2f} to {max(known):+.2f}"


def necessity_table(title: str, rows: Sequence[NecessityShown]) -> Table:
    """Every direction at every layer; random ones in one line for each layer."""
    lines: list[tuple[str, ...]] = []
    for layer in dict.fromkeys(row.layer for row in rows):
        own = [row for row in rows if row.layer == layer]
        lines += [
            (
                str(layer),
                row.direction,
                f"{100 * row.share:.1f} %",
                f"{row.cosine:.2f}",
                f"missing: {row.reason}" if row.estimate is None else bounded(row.estimate, row.low, row.high),
            )
            for row in own
            if not is_random(row)
        ]
        lines.append((str(layer), "random", "–", "–", _random_told([row for row in own if is_random(row)])))
    return Table(
        title,
        ("layer", "direction", "share of the change", "cosine with v_student", "change (nats)"),
        lines,
        "The student's component along each direction is replaced by the base's, at all tokens. A control says "
        "something about v_student where it holds about as much of the student's change, read at the tokens of the "
        "evaluation's questions. components: the leading principal components of the change that are orthogonal to "
        "v_student, as many together as hold as much.",
    )
