"""What a steering run leaves: report.html, the curve in Prefect's UI, and the keys that `--json` prints."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact

from flows.runs.publish import publish_report
from flows.runs.record import Run
from flows.steering.alignments import AlignmentMatrix, flat, matrices, matrix_tables
from flows.steering.config import SteeringFlowConfig
from flows.steering.findings import MechanismShown, RewrittenShown, Shown, findings, tables
from flows.steering.mechanism import Mechanism, Rewritten
from flows.steering.necessity import necessity_rows
from flows.steering.study import Steered
from sublim.evals.preference.config import Comparison
from sublim.models.files import read_json
from sublim.report.files import write_csv
from sublim.report.page import FigureFile, FlowReport
from sublim.steering.alignment_config import Alignment, EasTable
from sublim.steering.config import SteeringFiguresConfig
from sublim.steering.dose_curve_config import Curve, SteeredPoint
from sublim.steering.energy_config import OWN, direction
from sublim.store.manifest import Artifact
from sublim.store.payloads import matching
from tasks.stages import draw_steering

KINDS = ("student", "control", "difference")
"""The cosines of an alignment: of the student, of its control, and of their difference with the teacher's vector."""
CAPTIONS = {
    "sense": "Gain and loss at the same strengths: share of all answers asked that name the target, and share of right "
    "letters in MMLU-Pro; dotted: unsteered. Whiskers: 95 % intervals over questions",
    "curve": "Change of the target's log-prob margin at each strength; grey: random vectors as long. Whiskers: 95 % "
    "interval over these questions, for this one model and vector",
    "layers": "The student's own vector, layer by layer, against random vectors as long (grey), and, where it is "
    "replaced, against directions that hold part of the student's change (crosses)",
    "alignment": "Cosine of v_student, v_control and their difference with v_teacher at answer tokens; grey: random "
    "directions",
    "teachers": "Both alignments after the last update: with the own teacher's vector, with every other teacher's "
    "(grey), and with v_unique, the part of the own that is orthogonal to all others (dashed)",
}


def publish(run: Run, config: SteeringFlowConfig, steered: Sequence[Steered]) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    shown = [read(run, each) for each in steered]
    targets = [each.model_dump(mode="json") for each in shown]
    drawings = [drawn(run, each) for each in steered]
    for each, paths in zip(targets, drawings, strict=True):
        write_files(run.folder / "figures", each, paths)
    students_by_teachers = matrices_of(shown)
    named = " and ".join(each.target for each in shown)
    report = FlowReport(
        title=f"Steering towards {named}: {run.preset}",
        question=f"What does a vector ({config.mode.kind}) for {named} do to the base, and at which strength is sense "
        "lost?",
        findings=[line for each in shown for line in findings(each)],
        tables=[*matrix_tables(students_by_teachers), *(table for each in shown for table in tables(each))],
        figures=[FigureFile(path, CAPTIONS[path.stem]) for paths in drawings for path in paths],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    rows = [{name: str(value) for name, value in point.items()} for each in targets for point in each["curve"]]
    create_table_artifact(rows, key="curve", description=report.title)
    across = [each.model_dump(mode="json") for each in students_by_teachers]
    return {**publish_report(run, report), **targets[0], "targets": targets, "alignment_matrices": across}


def matrices_of(shown: Sequence[Shown]) -> list[AlignmentMatrix]:
    """The tables of students by teachers; none where the mechanism was not measured."""
    return matrices({each.target: each.mechanism.alignments for each in shown if each.mechanism})


def read(run: Run, steered: Steered) -> Shown:
    """The results of one target."""
    payload = run.store.payload
    return Shown(
        target=steered.target,
        vectors=read_json(payload(steered.vectors) / "vectors.json"),
        curve=read_curve(payload(steered.curve)),
        mechanism=read_mechanism(run, steered.mechanism) if steered.mechanism else None,
    )


def read_curve(payload: Path) -> list[SteeredPoint]:
    """The points in a payload of `steering_curve`."""
    return Curve.model_validate_json((payload / "curve.json").read_bytes()).points


def read_mechanism(run: Run, found: Mechanism) -> MechanismShown:
    """The mechanism's measures of one target."""
    payload = run.store.payload

    def layers(curves: list[Artifact]) -> list[list[SteeredPoint]]:
        return [[p for p in read_curve(payload(curve)) if p.layers and not p.control] for curve in curves]

    every = [read_curve(payload(each.curve)) for each in found.replaced]
    replaced = layers([each.curve for each in found.replaced])
    above, paper = (
        EasTable.model_validate_json((payload(each) / "eas.json").read_bytes())
        for each in (found.above_control, found.paper)
    )
    return MechanismShown(
        eas=above.rows,
        alignment_paper=paper.alignments,
        alignment_above_control=above.alignments,
        sufficiency=layers(found.sufficiency),
        replaced=[[p for p in own if len(p.vectors) == 1 and direction(p.vectors[0]) == OWN] for own in replaced],
        necessity=[
            necessity_rows(payload(each.directions), points) for each, points in zip(found.replaced, every, strict=True)
        ],
        rewritten=[read_rewritten(payload(each.comparison), each) for each in found.rewritten],
    )


def read_rewritten(payload: Path, each: Rewritten) -> RewrittenShown:
    """The effect of one direction's students on their target."""
    margin = Comparison.model_validate_json((payload / "comparison.json").read_bytes()).metrics["margin"]
    found = margin.effect
    return RewrittenShown(
        layer=each.layer,
        vector=each.vector,
        random=each.random,
        student=margin.student,
        control=margin.control,
        **(found.model_dump(include={"estimate", "low", "high"}) if found else {}),
        reason=margin.reason or (found.reason if found else None),
    )


def drawn(run: Run, steered: Steered) -> list[Path]:
    """The figures of one target."""
    found = steered.mechanism
    figures = draw_steering(
        SteeringFiguresConfig(target=steered.target),
        label=steered.target,
        curve=steered.curve,
        eas=found.above_control if found else None,
        paper=found.paper if found else None,
        sufficiency=found.sufficiency if found else None,
        replaced=[each.curve for each in found.replaced] if found else None,
    )
    return matching(run.store.payload(figures), "*.svg")


def write_files(folder: Path, shown: dict[str, Any], drawings: Sequence[Path]) -> None:
    """One target's figures as SVG files and the numbers behind each as a CSV file, beside the report."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in drawings:
        shutil.copyfile(path, folder / f"{shown['target']}-{path.stem}.svg")
    rows = {"curve": shown["curve"]}
    if mechanism := shown["mechanism"]:
        rows["layers"] = [
            {"measure": called, "student": pair, **point}
            for name, called in (("sufficiency", "added"), ("replaced", "replaced"))
            for pair, points in enumerate(mechanism[name])
            for point in points
        ]
        rows["alignment"] = [
            {
                **{name: value for name, value in row.items() if name not in KINDS},
                **{f"{kind}_{name}": value for kind in KINDS for name, value in row[kind].items()},
            }
            for row in mechanism["eas"]
        ]
        rows["necessity"] = [
            {"student": pair, **{name: value for name, value in row.items() if name != "vectors"}}
            for pair, own in enumerate(mechanism["necessity"])
            for row in own
        ]
        for measure in ("alignment_paper", "alignment_above_control"):
            rows[measure.replace("_", "-")] = [flat(Alignment.model_validate(row)) for row in mechanism[measure]]
    for name, table in rows.items():
        if table:
            write_csv(folder / f"{shown['target']}-{name}.csv", table, [])


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    lines = [line for each in outcome["targets"] for line in findings(Shown.model_validate(each))]
    return "\n".join([*lines, f"report: {outcome['report']}"])
