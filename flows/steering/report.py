"""What a steering run leaves: report.html, the curve in Prefect's UI, and the keys that `--json` prints."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect.artifacts import create_table_artifact

from flows.runs.publish import publish_toy
from flows.runs.record import Run
from flows.steering.config import SteeringFlowConfig
from sublim.evals.preference.config import Comparison
from sublim.report.files import write_csv
from sublim.report.page import FigureFile, FlowReport, Table, bounded
from sublim.steering.config import EasTable, SteeringFiguresConfig
from sublim.steering.dose_curve_config import Curve, SteeredPoint
from sublim.store.manifest import Artifact
from sublim.store.payloads import matching
from tasks.stages import draw_steering

if TYPE_CHECKING:
    from flows.steering.mechanism import Mechanism
    from flows.steering.study import Steered

CAPTIONS = {
    "sense": "Gain and loss at the same strengths: share of readable answers that name the target, and share of right "
    "letters in MMLU-Pro; dotted: unsteered. Whiskers: 95 % intervals over questions",
    "curve": "Change of the target's log-prob margin at each strength; grey: random vectors as long. Whiskers: 95 % "
    "interval over these questions, for this one model and vector",
    "layers": "The student's own vector, layer by layer, against random vectors as long (grey)",
    "alignment": "Cosine of v_student, v_control and their difference with v_teacher; grey: random directions",
}


class Shown(NamedTuple):
    """One target's results, read from the store."""

    target: str
    vectors: dict[str, dict[str, Any]]
    curve: Curve
    mechanism: dict[str, Any] | None


def publish(run: Run, config: SteeringFlowConfig, steered: "Sequence[Steered]") -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    shown = [read(run, each) for each in steered]
    drawings = {each.target: drawn(run, each) for each in steered}
    figures = [path for paths in drawings.values() for path in paths]
    for each in shown:
        write_files(run.folder / "figures", each, drawings[each.target])
    report = FlowReport(
        title=f"Steering towards {' and '.join(each.target for each in shown)}: {run.preset}",
        question=f"What does a vector ({config.mode.kind}) for {' and '.join(each.target for each in shown)} do to the "
        "base, and at which strength is sense lost?",
        findings=[line for each in shown for line in findings(each)],
        tables=[table for each in shown for table in tables(each)],
        figures=[FigureFile(path, CAPTIONS[path.stem]) for path in figures],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    rows = [point_json(point) for each in shown for point in each.curve.points]
    create_table_artifact([{k: str(v) for k, v in row.items()} for row in rows], key="curve", description=report.title)
    targets = [target_json(each) for each in shown]
    return {**publish_toy(run, report), **targets[0], "targets": targets}


def read(run: Run, steered: "Steered") -> Shown:
    """The results of one target."""
    payload = run.store.payload
    notes = json.loads((payload(steered.vectors) / "vectors.json").read_bytes())
    mechanism = mechanism_json(run, steered.mechanism) if steered.mechanism else None
    return Shown(steered.target, notes, read_curve(payload(steered.curve)), mechanism)


def read_curve(payload: Path) -> Curve:
    """A payload of `steering_curve`."""
    return Curve.model_validate_json((payload / "curve.json").read_bytes())


def drawn(run: Run, steered: "Steered") -> list[Path]:
    """The figures of one target."""
    found = steered.mechanism
    figures = draw_steering(
        SteeringFiguresConfig(target=steered.target),
        label=steered.target,
        curve=steered.curve,
        eas=found.eas if found else None,
        sufficiency=found.sufficiency if found else None,
        replaced=found.replaced if found else None,
    )
    return matching(run.store.payload(figures), "*.svg")


def write_files(folder: Path, shown: Shown, drawings: Sequence[Path]) -> None:
    """One target's figures as SVG files and the numbers behind each as a CSV file, beside the report."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in drawings:
        shutil.copyfile(path, folder / f"{shown.target}-{path.stem}.svg")
    rows = {"curve": [point_json(point) for point in shown.curve.points]}
    if shown.mechanism:
        measured = (("sufficiency", "added"), ("replaced", "replaced"))
        rows["layers"] = [
            {"measure": called, "student": pair, **point}
            for name, called in measured
            for pair, points in enumerate(shown.mechanism[name])
            for point in points
        ]
        rows["alignment"] = [
            {
                **{name: value for name, value in row.items() if name not in KINDS},
                **{f"{kind}_{name}": value for kind in KINDS for name, value in row[kind].items()},
            }
            for row in shown.mechanism["eas"]
        ]
    for name, table in rows.items():
        if table:
            write_csv(folder / f"{shown.target}-{name}.csv", table, [])


def point_json(point: SteeredPoint) -> dict[str, Any]:
    """One point of a curve as `--json` prints it."""
    return point.model_dump(mode="json")


def target_json(shown: Shown) -> dict[str, Any]:
    """One target: its vectors, its curve, its mechanism."""
    return {
        "target": shown.target,
        "vectors": shown.vectors,
        "curve": [point_json(point) for point in shown.curve.points],
        "mechanism": shown.mechanism,
    }


def mechanism_json(run: Run, found: "Mechanism") -> dict[str, Any]:
    """The mechanism's measures; every layer with its random fellows."""
    payload = run.store.payload
    eas = EasTable.model_validate_json((payload(found.eas) / "eas.json").read_bytes())

    def layers(curves: list[Artifact]) -> list[list[dict[str, Any]]]:
        own = [[p for p in read_curve(payload(curve)).points if p.layers and not p.control] for curve in curves]
        return [[point_json(point) for point in points] for points in own]

    return {
        "eas": [row.model_dump(mode="json") for row in eas.rows],
        "sufficiency": layers(found.sufficiency),
        "replaced": layers(found.replaced),
        "rewritten": [
            {"layer": each.layer, "vector": each.vector, "random": each.random, **effect(payload(each.comparison))}
            for each in found.rewritten
        ],
    }


def effect(payload: Path) -> dict[str, Any]:
    """The effect of students on their target, in nats."""
    margin = Comparison.model_validate_json((payload / "comparison.json").read_bytes()).metrics["margin"]
    found = margin.effect
    return {
        "student": margin.student,
        "control": margin.control,
        "estimate": found.estimate if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "reason": margin.reason or (found.reason if found else None),
    }


def findings(shown: Shown) -> Iterator[str]:
    """Sentences that answer the question, with numbers."""
    curve = shown.curve
    tried = [point for point in curve.points if point.layers and not point.control and point.estimate is not None]
    base = curve.points[0]
    start = "missing" if base.margin is None else f"{base.margin:+.2f} nats"
    yield f"{shown.target}: margin of the unsteered base {start} over {curve.questions} questions"
    for layers in dict.fromkeys(tuple(point.layers) for point in tried):
        best = max((p for p in tried if tuple(p.layers) == layers), key=lambda point: point.estimate or 0)
        tries = sum(tuple(point.layers) == layers for point in tried)
        chosen = f", the largest of {tries} points" if tries > 1 else ""
        low_high = bounded(best.estimate or 0, best.low, best.high)
        against = (
            f"; {best.random} random vectors {best.random_low:+.2f} to {best.random_high:+.2f}, p = "
            f"{best.beyond_random:.2f}"
            if best.random_low is not None and best.random_high is not None and best.beyond_random is not None
            else "; no random vectors there"
        )
        exam = "" if best.mmlu_pro is None else f"; MMLU-Pro {best.mmlu_pro:.3f} (unsteered {_unsteered(base)})"
        name = " + ".join(map(str, layers))
        yield f"layer {name}: most at strength {best.alpha:g} ({best.position}){chosen}, {low_high} nats{against}{exam}"
    if lost := [point for point in curve.points if point.layers and not point.control and point.estimate is None]:
        yield f"{len(lost)} points could not be measured: {lost[0].reason}"
    if shown.mechanism:
        yield from _mechanism_findings(shown.mechanism)


def _unsteered(base: SteeredPoint) -> str:
    return f"missing: {base.mmlu_pro_reason}" if base.mmlu_pro is None else f"{base.mmlu_pro:.3f}"


def _mechanism_findings(found: dict[str, Any]) -> Iterator[str]:
    rows = found["eas"]
    last = [row for row in rows if row["update"] == rows[-1]["update"]]
    best = max(last, key=lambda row: row["difference"]["mean"])
    text = ", ".join(f"{kind} {best[kind]['mean']:+.2f}" for kind in ("student", "control", "difference"))
    spread = f"{min(best['random']):+.2f} to {max(best['random']):+.2f}"
    yield f"alignment with the teacher is largest at layer {best['layer']}: {text}; random directions {spread}"
    for name, sign, verb in (("sufficiency", 1, "adding v_student to the base"), ("replaced", -1, "replacing it")):
        for pair, points in enumerate(found[name]):
            told = [point for point in points if point["estimate"] is not None]
            if told:
                most = max(told, key=lambda point: sign * point["estimate"])
                yield (
                    f"{verb} (student {pair}) does most at layer {most['layers'][0]}, of {len(told)} layers: "
                    f"{bounded(most['estimate'], most['low'], most['high'])} nats, random vectors "
                    f"{_spread(SteeredPoint.model_validate(most))}"
                )
            if len(told) < len(points):
                reason = next(point["reason"] for point in points if point["estimate"] is None)
                yield f"{verb} (student {pair}): {len(points) - len(told)} layers could not be measured: {reason}"


def tables(shown: Shown) -> Iterator[Table]:
    """Every true point of the curve, the vectors, and the mechanism layer by layer."""
    yield Table(
        f"{shown.target}: curve",
        ("layers", "strength", "tokens", "change (nats)", "random", "rate", "MMLU-Pro"),
        [row_of(point) for point in shown.curve.points if not point.control],
    )
    yield Table(
        f"{shown.target}: vectors",
        ("vector", "length", "stream's length", "rows", "cosine of two halves"),
        [
            (
                name,
                f"{note['norm']:.3f}",
                "–" if note["residual_norm"] is None else f"{note['residual_norm']:.2f}",
                str(note["rows"] or "–"),
                f"{note['split_half_cosine']:.3f}" if "split_half_cosine" in note else "–",
            )
            for name, note in shown.vectors.items()
        ],
    )
    if shown.mechanism:
        yield _alignment_table(shown)
        for name in ("sufficiency", "replaced"):
            for pair, points in enumerate(shown.mechanism[name]):
                rows = [row_of(SteeredPoint.model_validate(point)) for point in points]
                title = f"{shown.target}: {name}, student {pair}"
                yield Table(
                    title, ("layers", "strength", "tokens", "change (nats)", "random", "rate", "MMLU-Pro"), rows
                )
        rewritten = shown.mechanism["rewritten"]
        if rewritten:
            yield Table(
                f"{shown.target}: students of a teacher that wrote without a direction",
                ("layer", "direction", "effect (nats)", "student", "control"),
                [
                    (
                        str(each["layer"]),
                        each["vector"],
                        f"missing: {each['reason']}"
                        if each["estimate"] is None
                        else bounded(each["estimate"], each["low"], each["high"]),
                        "–" if each["student"] is None else f"{each['student']:+.2f}",
                        "–" if each["control"] is None else f"{each['control']:+.2f}",
                    )
                    for each in rewritten
                ],
            )


def _alignment_table(shown: Shown) -> Table:
    assert shown.mechanism is not None
    return Table(
        f"{shown.target}: cosine with v_teacher",
        ("place", "updates", "student", "control", "student − control", "random", "|v_student|", "|v_teacher|"),
        [
            (
                row["name"],
                str(row["update"] or "all"),
                *(bounded(row[kind]["mean"], row[kind]["low"], row[kind]["high"]) for kind in KINDS),
                f"{min(row['random']):+.2f} to {max(row['random']):+.2f}",
                f"{row['student_length']:.4f}",
                f"{row['teacher_length']:.4f}",
            )
            for row in shown.mechanism["eas"]
        ],
    )


KINDS = ("student", "control", "difference")


def row_of(point: SteeredPoint) -> tuple[str, ...]:
    """A point as cells."""
    return (
        " + ".join(map(str, point.layers)) or "none",
        f"{point.alpha:g}" + (" (relative)" if point.scale == "relative" else ""),
        point.position,
        f"missing: {point.reason}" if point.estimate is None else bounded(point.estimate, point.low, point.high),
        _spread(point),
        f"missing: {point.rate_reason}"
        if point.rate is None
        else f"{bounded(point.rate, point.rate_low, point.rate_high)} ({point.readable} of {point.answers} read)",
        f"missing: {point.mmlu_pro_reason}"
        if point.mmlu_pro is None
        else f"{bounded(point.mmlu_pro, point.mmlu_pro_low, point.mmlu_pro_high)} ({point.mmlu_pro_read} read)",
    )


def _spread(point: SteeredPoint) -> str:
    """How far random vectors as long move the margin."""
    if point.random_low is None or point.random_high is None:
        return "none" if point.layers else "–"
    return f"{point.random_low:+.2f} to {point.random_high:+.2f} ({point.random})"


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    lines = [
        line
        for target in outcome["targets"]
        for line in findings(
            Shown(
                target["target"],
                target["vectors"],
                Curve(
                    target=target["target"],
                    words=[],
                    questions=max((point["questions"] for point in target["curve"]), default=0),
                    level=0.95,
                    points=[SteeredPoint.model_validate(point) for point in target["curve"]],
                ),
                target["mechanism"],
            )
        )
    ]
    return "\n".join([*lines, f"report: {outcome['report']}"])
