"""What a pipeline run leaves: report.html, summary.json, and a table and a summary in Prefect's UI."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.pipeline.arms import control_set
from flows.pipeline.capability import (
    capability_json,
    capability_notes,
    category_rows,
    costs_of,
    shift_notes,
    shifts_json,
)
from flows.pipeline.carrier import unexamined
from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import CONTROL, all_words, score_config
from flows.pipeline.report_arms import Results, arms_of, bases_of, confusion_of, dose_of, unchanged_notes
from flows.pipeline.report_specific import specific_of
from flows.pipeline.report_tests import specific_places, test_together
from flows.pipeline.study import Study, read
from flows.pipeline.teacher_config import FinetunedTeacher
from flows.runs.publish import publish_figures, publish_link
from flows.runs.record import Run
from flows.runs.settings import changes
from sublim.chats.chat import context_mismatches
from sublim.design.arms import DERIVED
from sublim.diagnostics.carrier_config import Carrier
from sublim.files.jsonl import read_jsonl
from sublim.report.carrier import CarrierShown, kind_of
from sublim.report.diagnostics import DiagnosticsShown
from sublim.report.files import write_csv
from sublim.report.page import FigureFile
from sublim.report.render import write_report
from sublim.report.shown import DatasetShown, Edge, RowShown, RunReport, StageShown, TargetShown
from sublim.report.summary import markdown_summary, summary, table_rows
from sublim.store.manifest import Manifest, input_artifacts

ROWS_SHOWN = 5


def publish(run: Run, study: Study) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    shown = describe(run, study)
    run.report = write_report(run.folder, shown)
    capability = capability_json(run.store, study.capability)
    if categories := category_rows(capability):
        write_csv(run.folder / "figures" / "mmlu-pro-by-category.csv", categories, [])
    create_markdown_artifact(markdown_summary(shown), key="summary", description=shown.question)
    create_table_artifact(table_rows(shown), key="effects", description=shown.title)
    figures = sorted((run.folder / "figures").glob("*.svg"))
    publish_figures(FigureFile(path, path.stem.replace("-", " ")) for path in figures)
    publish_link(run)
    return {
        **summary(shown),
        "target": ",".join(study.config.target),
        "origin": study.config.origin,
        "mmlu_pro": capability,
        "shifts": shifts_json(run.store, study.shifts),
        "report": str(run.report),
        "run": run.name,
    }


def describe(run: Run, study: Study) -> RunReport:
    """Everything the report shows, read from the store."""
    config, bases = study.config, bases_of(run, study)
    manifests = {
        stage.key: manifest for stage in run.stages if (manifest := run.store.manifest(stage.stage, stage.key))
    }
    contexts = dict(_contexts(manifests, study))
    both = {"student", "asked"} <= {*contexts}
    made = manifests[study.trained.bases["base"].key].provenance
    drawn = "a second draw of the base's own rows" if config.second_draw else "the teacher's number lists"
    drawn = (
        f"the teacher's probabilities of digits in the {config.origin}'s lists" if config.labels == "soft" else drawn
    )
    against = "paired controls" if control_set(config) else f"the {config.origin}"
    *others, last = config.target
    targets = f"{', '.join(others)} and {last}" if others else last
    asked = " or ".join(f"“{target}”" for target in config.target)
    results = Results(run, study)
    specific = specific_of(run, study)
    tests = test_together([*results.places, *specific_places(specific)])
    carrier = list(_carriers(run, study))
    changed = changes(config, "pipeline", run.preset)
    # What a preset says of itself holds only where it was taken as it is, for whatever word.
    said = "about" in changed or {*changed} <= {"target"}
    about = config.about if said else ""
    return RunReport(
        title=f"{targets.capitalize()}: {about or run.preset}{'' if said else ' with other settings'}",
        question=f"Do students trained on {drawn} come to prefer {asked}, compared with {against}?",
        flow="pipeline",
        preset=run.preset,
        about=about,
        targets=[_target(run, results, study, target, bases) for target in config.target],
        specific=specific,
        confusion=confusion_of(study, results),
        tests=tests,
        bases=bases,
        diagnostics=_diagnostics(run, results, study),
        contexts=contexts,
        mismatches=context_mismatches(contexts["student"], contexts["asked"]) if both else [],
        datasets=list(_datasets(run, study)),
        carrier=carrier,
        stages=[StageShown(**stage.model_dump()) for stage in run.stages],
        edges=list(_edges(manifests)),
        settings=config.model_dump(mode="json"),
        provenance={
            "code": f"{made.commit or 'no checkout'}{' with changes' if made.dirty else ''}",
            "device": made.device,
            "python": made.python,
            **made.packages,
        },
        notes=[
            *(text for text in [kind_of(carrier)] if text),
            *_notes(config, changed),
            *unchanged_notes(manifests, study),
            *capability_notes(capability_json(run.store, study.capability)),
            *shift_notes(shifts_json(run.store, study.shifts)),
        ],
        seconds=run.seconds,
    )


def _contexts(manifests: dict[str, Manifest], study: Study) -> Iterator[tuple[str, Any]]:
    """The first rendered context of each role, from the notes of the stages that used it: the main arm's first."""
    main, trained = study.comparisons[0], study.trained
    first = trained.blocks[0]
    teachers_texts = [*first.labels.values(), *(raw for writer, raw in first.raw.items() if writer != CONTROL)]
    roles = {
        "teacher": next(iter(teachers_texts)),
        "student": trained.students[main.contrast.students][0],
        "asked": study.asked[main.contrast.student_keys(trained.units, main.update)[0]],
    }
    for role, artifact in roles.items():
        manifest = manifests.get(artifact.key)
        found = manifest.notes.get("contexts") if manifest else None
        if found:
            yield role, found[0]


def _target(run: Run, results: Results, study: Study, target: str, bases: dict[str, str]) -> TargetShown:
    updates = study.main(target).updates
    called = "second draw of the base" if study.config.second_draw else "teacher"
    return TargetShown(
        arm=called,
        comparison=results.main(target, updates[-1]),
        dose=dose_of((update, results.main(target, update).metrics) for update in updates),
        arms=arms_of(study, results, target, called, bases),
        costs=costs_of(run.store, results, study.capability, target, called),
    )


def _diagnostics(run: Run, results: Results, study: Study) -> DiagnosticsShown | None:
    if study.diagnosed is None:
        return None
    from flows.pipeline.report_diagnostics import diagnostics_of  # imports scipy, which other runs need not wait for

    return diagnostics_of(run, results, study, study.diagnosed)


def _datasets(run: Run, study: Study) -> Iterator[DatasetShown]:
    first = study.trained.blocks[0]
    derived = {each.name: each.rows[0] for each in study.trained.sets if each.arm in DERIVED}
    for arm, rows_kept in {**first.rows, **derived}.items():
        payload = run.store.payload(rows_kept)
        counts = json.loads((payload / "rejections.json").read_text(encoding="utf-8"))
        rows = islice(read_jsonl(payload / "rows.jsonl"), ROWS_SHOWN)
        yield DatasetShown(
            name=f"{arm} teacher" if arm in first.teachers else arm,
            answers=counts["rows"],
            valid=counts["valid"],
            kept=counts["kept"],
            rejected=counts["rejected"],
            rows=[RowShown(prompt=row["prompt"], answer=row["answer"], system=row["system"]) for row in rows],
        )


def _carriers(run: Run, study: Study) -> Iterator[CarrierShown]:
    for block in study.trained.blocks:
        for writer, artifact in block.carriers.items():
            name = f"{writer} teacher" if writer in block.teachers else writer
            called = f"{name} · block {block.number}" if block.number else name
            yield CarrierShown(writer=called, found=read(Carrier, run.store, artifact, "carrier.json"))


def _edges(manifests: dict[str, Manifest]) -> Iterator[Edge]:
    for key, manifest in manifests.items():
        for name, value in manifest.inputs.items():
            for artifact in input_artifacts({name: value}):
                yield Edge(source=artifact.key, target=key, name=name)


def _notes(config: PipelineConfig, changed: Mapping[str, Any]) -> list[str]:
    notes: list[str] = []
    told = [f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in changed.items() if name != "about"]
    if told:
        notes.append(f"Settings that differ from the preset: {'; '.join(told)}.")
    if config.second_draw:
        notes.append("A null run: a second draw of the base's own rows replaces the teacher's.")
    if isinstance(config.teacher, FinetunedTeacher) and config.teacher.teaches == "own_answers":
        notes.append("A null run: teachers were fine-tuned on the base's own answers, and so prefer nothing.")
    if config.start:
        notes.append(
            f"Teachers, students and controls begin from a start: the base tuned on {config.start.rows:,} number lists "
            "made by rule. Where tables say base, they mean this start."
        )
    if config.evaluation.samples == 0:
        notes.append("No answers were sampled, so there is no rate.")
    if config.labels == "soft":
        notes.append(
            f"Soft labels: every student of a block reads the {config.origin}'s own lists, and learns its teacher's "
            f"probabilities of the digits alone. There are no trained controls; the control is the {config.origin}, "
            "and what is specific to a teacher shows only beside students of other teachers."
        )
    if len(config.made) > 1 and any(score_config(config, each).words != all_words(config) for each in config.target):
        notes.append(
            "Not all targets are listed. In the tables of all targets and in specific, generic and total effects, "
            "margins are against the list with all targets; in a target's other numbers against the list and that one."
        )
    if why := unexamined(config):
        notes.append(f"The carrier was not examined, because {why}: nothing is known of what the writers do freely.")
    if config.held_back:
        notes.append(f"Arms left for a later run: {', '.join(config.held_back)}.")
    return notes
