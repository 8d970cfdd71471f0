"""What a pipeline run leaves: report.html, summary.json, and a table and a summary in Prefect's UI."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.pipeline_config import PipelineConfig
from flows.runs import Run
from sublim.chat import context_mismatches
from sublim.jsonl import read_jsonl
from sublim.manifest import Artifact, Manifest, input_artifacts
from sublim.preference_config import Comparison
from sublim.report import write_report
from sublim.report_config import (
    ContextShown,
    DatasetShown,
    DosePoint,
    Edge,
    RowShown,
    RunReport,
    StageShown,
    TargetShown,
    markdown_summary,
    summary,
    table_rows,
)

if TYPE_CHECKING:
    from flows.pipeline import Study

ROWS_SHOWN = 5


def publish(run: Run, config: PipelineConfig, study: "Study") -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    shown = describe(run, config, study)
    run.report = write_report(run.folder, shown)
    create_markdown_artifact(markdown_summary(shown), key="summary", description=shown.question)
    create_table_artifact(table_rows(shown), key="effects", description=shown.title)
    create_link_artifact(run.report.as_uri(), link_text=run.report.name, key="report")
    return {**summary(shown), "target": ",".join(config.target), "report": str(run.report), "run": run.name}


def describe(run: Run, config: PipelineConfig, study: "Study") -> RunReport:
    """Everything the report shows, read from the store."""
    manifests = {key: manifest for key, manifest in _manifests(run)}
    contexts = dict(_contexts(manifests, study))
    made = manifests[study.base.key].provenance
    drawn = "a second draw of the base's own rows" if config.second_draw else "the teacher's number lists"
    targets = " and ".join(config.target)
    return RunReport(
        title=f"{targets.capitalize()}: {config.about or run.preset}",
        question=f"Do students trained on {drawn} come to favour “{targets}”, compared with paired controls?",
        flow="pipeline",
        preset=run.preset,
        about=config.about,
        targets=[_target(run, target, study, drawn_by(config)) for target in config.target],
        contexts=[ContextShown(role=role, **found) for role, found in contexts.items()],
        mismatches=context_mismatches(contexts["student"], contexts["asked"]) if len(contexts) == 3 else [],
        datasets=list(_datasets(run, study)),
        stages=[StageShown(**stage._asdict()) for stage in run.stages],
        edges=list(_edges(manifests)),
        settings=config.model_dump(mode="json"),
        provenance={
            "code": f"{made.commit or 'no checkout'}{' with changes' if made.dirty else ''}",
            "device": made.device,
            "python": made.python,
            **made.packages,
        },
        notes=_notes(config),
        seconds=run.seconds,
    )


def _manifests(run: Run) -> Iterator[tuple[str, Manifest]]:
    for stage in run.stages:
        manifest = run.store.manifest(stage.stage, stage.key)
        if manifest is not None:
            yield stage.key, manifest


def _contexts(manifests: dict[str, Manifest], study: "Study") -> Iterator[tuple[str, Any]]:
    """The first rendered context of each role, from the notes of the stages that used it."""
    by_stage = {manifest.artifact.stage: manifest for manifest in manifests.values()}
    written = next(raw for arm, each in study.raw.items() if arm != "control" for raw in each)
    roles = {
        "teacher": manifests.get(written.key),
        "student": by_stage.get("train_student"),
        "asked": by_stage.get("ask"),
    }
    for role, manifest in roles.items():
        found = manifest.notes.get("contexts") if manifest else None
        if found:
            yield role, found[0]


def drawn_by(config: PipelineConfig) -> str:
    """What wrote the students' rows, as the arm is called."""
    return "second draw of the base" if config.second_draw else "teacher"


def _target(run: Run, target: str, study: "Study", arm: str) -> TargetShown:
    found = [(each.update, _comparison(run, each.artifact)) for each in study.comparisons if each.target == target]
    dose = [DosePoint(updates=update, metrics=compared.metrics) for update, compared in found if update is not None]
    return TargetShown(arm=arm, comparison=found[-1][1], dose=dose if len(dose) > 1 else [])


def _comparison(run: Run, artifact: Artifact) -> Comparison:
    return Comparison.model_validate_json((run.store.payload(artifact) / "comparison.json").read_text())


def _datasets(run: Run, study: "Study") -> Iterator[DatasetShown]:
    for arm, blocks in study.rows.items():
        payload = run.store.payload(blocks[0])
        counts = json.loads((payload / "rejections.json").read_text())
        rows = islice(read_jsonl(payload / "rows.jsonl"), ROWS_SHOWN)
        yield DatasetShown(
            name=arm if arm == "control" else f"{arm} teacher",
            answers=counts["rows"],
            valid=counts["valid"],
            kept=counts["kept"],
            rejected=counts["rejected"],
            rows=[RowShown(prompt=row["prompt"], answer=row["answer"], system=row["system"]) for row in rows],
        )


def _edges(manifests: dict[str, Manifest]) -> Iterator[Edge]:
    for key, manifest in manifests.items():
        for name, value in manifest.inputs.items():
            for artifact in input_artifacts({name: value}):
                yield Edge(source=artifact.key, target=key, name=name)


def _notes(config: PipelineConfig) -> list[str]:
    notes: list[str] = []
    if config.second_draw:
        notes.append("A null run: the base's own rows, drawn a second time, stand in the teacher's place.")
    if config.evaluation.samples == 0:
        notes.append("No answers were sampled: the sampled rate is missing, not zero.")
    return notes


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    lines: list[str] = []
    for target in outcome["targets"]:
        lines += ["", *_printed_target(target)]
    lines += ["", *(f"note: {text}" for text in outcome["mismatches"]), f"report: {outcome['report']}"]
    return "\n".join(lines)


def _printed_target(target: dict[str, Any]) -> Iterator[str]:
    word = target["target"]
    yield f"{word}: do students come to favour it, compared with their paired controls?"
    for name, metric in (("margin", target), ("rate", target["rate"])):
        effect = metric["effect"]
        if effect is None:
            yield f"  {name:7} missing: {metric['reason']}"
            continue
        scale, unit = (1, "nats") if name == "margin" else (100, "points")
        means = ", ".join(
            f"{arm} {metric[arm] * scale:+.2f}"
            for arm in ("base", "teacher", "control", "student")
            if metric[arm] is not None
        )
        yield f"  {name:7} effect {effect['estimate'] * scale:+.2f} {unit}  ({means})"
        yield f"          95 % on these questions {_range(effect['low'], effect['high'], scale)}"
        yield f"          95 % questions too      {_range(effect['low_questions'], effect['high_questions'], scale)}"
        yield f"          {effect['seeds']} pairs x {effect['questions']} questions"
    others = [
        f"{other} {by['effect']['estimate']:+.2f}"
        for other, by in target["off_target"].items()
        if by["effect"] is not None
    ]
    if others:
        yield f"  other words' margins moved (nats): {', '.join(others)}"
    for point in target["dose"]:
        if point["effect"] is not None:
            effect = point["effect"]
            interval = _range(effect["low"], effect["high"], 1)
            yield f"  after {point['updates']:4} updates {effect['estimate']:+.2f} nats, {interval}"
    yield f"  {target['about_units']}"


def _range(low: float | None, high: float | None, scale: float) -> str:
    return "none (one unit)" if low is None or high is None else f"{low * scale:+.2f} to {high * scale:+.2f}"
