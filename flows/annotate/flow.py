"""The annotation flow: are the descriptions of SAE features about animals, numbers or opinion?

    sublim run annotate --preset quickstart                               # 48 descriptions, the bundled model
    sublim run annotate --preset neuronpedia --set features=20_4711,9_12  # descriptions from Neuronpedia
    sublim run annotate --set file=labels.parquet --set layer=20          # a table of labels
    sublim run annotate --set 'features=["20_1: owls at night"]' --set 'file=""'
    python -m flows.annotate --preset quickstart

Descriptions come with the list of features, from the user's table, or from Neuronpedia's public bucket. A model sorts
them, without sampling: a local model by the log-probs of the four category words, a server by the text it writes.
Answers that name no category are counted separately. If the list gives categories assigned by hand, the share of
correct answers is reported with its interval.
"""

from typing import Any

import polars as pl
from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.annotate.config import AnnotateFlowConfig, check
from flows.runs.parameters import Loader
from flows.runs.publish import publish_report
from flows.runs.record import Run, recorded
from sublim.features.labels.config import CATEGORIES, AnnotationSummary, TakeLabelsConfig
from sublim.models.config import PrepareModelConfig
from sublim.report.page import FlowReport, Table, bounded
from sublim.store.manifest import Artifact
from tasks.stages import annotate as annotate_stage
from tasks.stages import import_labels, prepare_model, take_labels

SHOWN = 500
"""Most rows in the table of the report and of the UI. The Parquet file has all rows."""

load_config = Loader("annotate", AnnotateFlowConfig)


@flow(name="annotate", flow_run_name=load_config.run_name(lambda _: "annotate"))
def annotate(preset: str = "quickstart", settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Sorts descriptions of SAE features into animals, numbers, opinion and none.

    Args:
        preset: The preset to start from: quickstart, neuronpedia, or the path of a YAML file.
        settings: Settings that replace those of the preset, as a nested mapping.
    """
    config = load_config(preset, None, settings)
    check(config)
    with recorded("annotate", preset, "") as run:
        annotation = config.annotation()
        base = prepare_model(PrepareModelConfig(source=config.model)) if annotation.needs_base else None
        return publish(run, config, annotate_stage(annotation, base=base, labels=labels(config)))


def labels(config: AnnotateFlowConfig) -> Artifact | dict[str, Artifact] | None:
    """The labels that are needed: the user's table, or Neuronpedia's for the layers of features without description."""
    if config.table:
        return take_labels(TakeLabelsConfig.model_validate({"path": config.file}))
    layers = sorted({each.layer for each in config.listed() if each.description is None})
    return {str(layer): import_labels(config.labels.of(layer), label=f"layer {layer}") for layer in layers} or None


def publish(run: Run, config: AnnotateFlowConfig, annotated: Artifact) -> dict[str, Any]:
    """Writes the report, publishes it in the UI, and returns what `--json` prints."""
    payload = run.store.payload(annotated)
    summary = AnnotationSummary.model_validate_json((payload / "annotations.json").read_bytes())
    rows = pl.read_parquet(payload / "annotations.parquet")
    found = findings(summary, len(rows))
    shown = FlowReport(
        title=f"Annotation: {config.about or run.preset}",
        question="Are the descriptions of these features about animals, numbers or opinion?",
        findings=found,
        tables=list(tables(summary, rows)),
        figures=[],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    listed = rows.head(SHOWN).to_dicts()
    create_table_artifact(listed, key="annotations", description=shown.question)
    return {
        **publish_report(run, shown),
        "table": str(payload / "annotations.parquet"),
        "annotations": listed,
        "counts": summary.counts,
        "unlabelled": summary.unlabelled,
        "agreement": summary.agreement.model_dump() if summary.agreement else None,
        "findings": found,
    }


def findings(summary: AnnotationSummary, rows: int) -> list[str]:
    """The counts, and what is known about the accuracy of the model."""
    sorted_by = "the most likely word" if summary.by == "log-probs" else "the text that the model wrote"
    counts = ", ".join(f"{name} {count}" for name, count in summary.counts.items())
    lines = [f"{rows} descriptions sorted by {sorted_by}: {counts}"]
    if names := summary.unlabelled:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        lines.append(f"{len(names)} features have no label and were not sorted: {', '.join(names[:8])}{more}")
    if summary.missing:
        name, reason = next(iter(summary.missing.items()))
        lines.append(
            f"{len(summary.missing)} descriptions have no answer and are not counted, such as {name} ({reason})"
        )
    if found := summary.agreement:
        share = bounded(found.estimate, found.low, found.high, 3)
        lines.append(
            f"agreement with categories assigned by hand: {share}, {found.right} of {found.n} (Wilson interval over "
            f"such descriptions; {found.unreadable} unreadable answers count as wrong)"
        )
    else:
        lines.append("no categories were assigned by hand, so the accuracy of this model is not known")
    return lines


def tables(summary: AnnotationSummary, rows: pl.DataFrame) -> list[Table]:
    """The confusion table if categories were assigned by hand, the descriptions, and those with unreadable answers."""
    columns = ("feature", "category", "description", "answer")
    found: list[Table] = []
    if summary.agreement:
        names = [*CATEGORIES, "unreadable"]
        cells = [
            [hand, *(str(row.get(name, 0)) for name in names)] for hand, row in summary.agreement.confusion.items()
        ]
        found.append(Table("Category by hand (rows) and by the model (columns)", ["", *names], cells))
    unreadable = rows.filter(pl.col("category").is_null() & pl.col("answer").is_not_null())
    for title, part in (("Descriptions", rows.filter(pl.col("category").is_not_null())), ("Unreadable", unreadable)):
        if len(part):
            heading = title if len(part) <= SHOWN else f"{title}: the first {SHOWN} of {len(part)}"
            found.append(Table(heading, columns, [_cells(row) for row in part.head(SHOWN).iter_rows(named=True)]))
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    layer = "" if row["layer"] is None else f"{row['layer']}_"
    return [f"{layer}{row['feature']}", row["category"] or "", row["description"], row["answer"]]


def printed(outcome: dict[str, Any]) -> str:
    """The result as text for the terminal."""
    return "\n".join([*outcome["findings"], f"report: {outcome['report']}"])
