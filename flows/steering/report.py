"""What a steering run leaves: report.html, the curve in Prefect's UI, and the keys that `--json` prints."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_table_artifact

from flows.runs.publish import publish_toy
from flows.runs.record import Run
from flows.steering.config import SteeringFlowConfig
from flows.steering.findings import KINDS, Shown, findings, tables
from sublim.evals.preference.config import Comparison
from sublim.report.files import write_csv
from sublim.report.page import FigureFile, FlowReport
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
