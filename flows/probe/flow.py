"""Probes: whether the base's activations at a layer tell a teacher's rows from the base's own.

    sublim run probe --preset quickstart --target owl
    sublim run probe --preset quickstart --target owl,wolf --set 'layers=[9, 20]'
    python -m flows.probe --preset quickstart

Teacher and base answer the same prompts with the same seeds. The base reads the rows of both, and linear probes on
every layer and on all layers together predict who wrote a row. Every accuracy is reported beside the one with shuffled
labels. Stages that the pipeline has run with equal settings are taken from the cache.
"""

from typing import Any

import polars as pl
from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.pipeline.bases import check_bases, prepare_bases
from flows.pipeline.block import write_block
from flows.pipeline.checks import check as check_pipeline
from flows.pipeline.plan import CONTROL
from flows.probe.config import ProbeFlowConfig
from flows.runs.machine import check_machine
from flows.runs.parameters import Loader
from flows.runs.publish import publish_report
from flows.runs.record import Run, recorded
from sublim.core.errors import UserError
from sublim.models.files import read_json
from sublim.probes.config import ProbeFiguresConfig, ProbeSummaries, ProbeSummary
from sublim.report.page import FigureFile, FlowReport, Table, bounded
from sublim.store.manifest import Artifact
from tasks.processes import one_process
from tasks.stages import draw_probes, fit_probes, read_activations

CAPTION = "Test accuracy by layer with 95 % intervals over prompts; grey: accuracy with shuffled labels"

load_config = Loader("probe", ProbeFlowConfig)


def check(config: ProbeFlowConfig) -> None:
    """Raises UserError for every mistake in the settings that can be found before the run."""
    check_machine(config.gpu_memory_gib)
    check_pipeline(config.pipeline)
    if config.pipeline.second_draw:
        raise UserError("the base's second draw has no teacher to probe for: leave study.second_draw out")


@flow(name="probe", flow_run_name=load_config.run_name(lambda config: f"probe {config.targets}"))
def probe(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measures how well probes on each layer of the base tell a teacher's rows from the base's own.

    Args:
        preset: Settings to start from: quickstart, gemma-2-9b-a6000, or the path of a YAML file.
        target: The target or targets, as in owl or owl,wolf; by default the preset's.
        settings: Values that replace those of the preset, as a tree.
    """
    config = load_config(preset, target, settings)
    check(config)
    with recorded("probe", preset, ",".join(config.pipeline.target)) as run:
        return publish(run, config, conduct(run, config))


def conduct(run: Run, config: ProbeFlowConfig) -> Artifact:
    """Runs all stages, or takes them from the cache, and returns the fitted probes."""
    study = config.pipeline
    bases = prepare_bases(study)
    check_bases(study, bases, students=False)
    base = bases["base"]
    rows = write_block(study, base, study.blocks[0], (CONTROL, *study.target)).rows
    reading = config.reading(check_layers(config, run, base))
    with one_process():
        read = {arm: read_activations(reading, label=arm, base=base, rows=own) for arm, own in rows.items()}
    targets = {arm: read[arm] for arm in study.target}
    probes = config.probes.model_copy(update={"answers": study.carrier.sampling.n})
    return fit_probes(probes, label=", ".join(study.target), target=targets, control=read[CONTROL])


def check_layers(config: ProbeFlowConfig, run: Run, base: Artifact) -> int:
    """The number of the base's layers. Raises UserError if `config.layers` names one that it lacks."""
    shape = read_json(run.store.payload(base) / "config.json")
    count = int((shape.get("text_config") or shape)["num_hidden_layers"])
    if beyond := [layer for layer in config.layers or () if not 0 <= layer < count]:
        raise UserError(f"the model has no layer {beyond[0]}: it has {count}, counted from 0 to {count - 1}")
    return count


def publish(run: Run, config: ProbeFlowConfig, probes: Artifact) -> dict[str, Any]:
    """Writes the report, adds artifacts to Prefect's UI, and returns what `--json` prints."""
    drawn = run.store.payload(draw_probes(ProbeFiguresConfig(), probes=probes))
    payload = run.store.payload(probes)
    summary = ProbeSummaries.model_validate_json((payload / "summary.json").read_bytes())
    manifest = run.store.manifest(probes.stage, probes.key)
    identical = (manifest.notes if manifest else {}).get("identical", {})
    shown = FlowReport(
        title=f"Probes: {config.about or run.preset}",
        question="Do the base's activations tell a teacher's rows from the base's own?",
        findings=[*findings(summary.rows, identical), f"Intervals: {summary.about}."],
        tables=tables(summary.rows),
        figures=[FigureFile(drawn / "probes.svg", CAPTION)],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    create_table_artifact([row.model_dump() for row in summary.rows], key="probes", description=shown.title)
    pl.read_parquet(payload / "probes.parquet").write_csv(run.folder / "probes.csv")
    listed = [printable(each) for each in grouped(summary.rows)]
    return {**publish_report(run, shown), "probes": listed, "identical": identical, "findings": shown.findings}


def grouped(rows: list[ProbeSummary]) -> list[dict[str, ProbeSummary]]:
    """The metrics of every target and layer, by name."""
    found: dict[tuple[str, int], dict[str, ProbeSummary]] = {}
    for row in rows:
        found.setdefault((row.target, row.layer), {})[row.metric] = row
    return list(found.values())


def printable(each: dict[str, ProbeSummary]) -> dict[str, Any]:
    """One probe as `--json` prints it; `low` and `high` are the interval of the accuracy."""
    accuracy = each["accuracy"]
    about = {"layer": accuracy.layer, "target": accuracy.target, "low": accuracy.low, "high": accuracy.high}
    return about | {name: row.estimate for name, row in each.items()} | {"prompts": accuracy.prompts}


def findings(rows: list[ProbeSummary], identical: dict[str, float]) -> list[str]:
    """The findings of the report: for every target the range over layers, the probe on all layers, and the share of
    rows that no probe can tell apart."""
    lines: list[str] = []
    for target in dict.fromkeys(row.target for row in rows):
        own = [each for each in grouped(rows) if each["accuracy"].target == target]
        single = [each for each in own if each["accuracy"].layer >= 0]
        beyond = sum(each["selectivity"].low > 0 for each in single)
        values = [each["accuracy"].estimate for each in single]
        lines.append(
            f"{target}: accuracy {min(values):.3f} to {max(values):.3f} over {len(values)} layers, chance "
            f"{own[0]['accuracy'].chance:.3f}; above shuffled labels at {beyond} of them (each at 95 %, not corrected)"
        )
        lines += [f"{target}, all layers: {with_intervals(each)}" for each in own if each["accuracy"].layer < 0]
        if target in identical:
            lines.append(
                f"{target}: {identical[target]:.1%} of the rows equal the control's, so no probe can tell them apart"
            )
    return lines


def with_intervals(each: dict[str, ProbeSummary]) -> str:
    """Accuracy, AUC and selectivity with intervals, as text."""
    parts = {"accuracy": each["accuracy"], "AUC": each["auc"], "minus shuffled": each["selectivity"]}
    return ", ".join(f"{name} {bounded(row.estimate, row.low, row.high, 3)}" for name, row in parts.items())


def tables(rows: list[ProbeSummary]) -> list[Table]:
    """A table of all metrics, with a line for each target and layer."""
    names = ("accuracy", "shuffled", "selectivity", "auc", "precision", "recall", "f1")
    lines = [
        [each["accuracy"].target, "all" if each["accuracy"].layer < 0 else str(each["accuracy"].layer)]
        + [bounded(each[name].estimate, each[name].low, each[name].high, 3) for name in names]
        + [str(each["accuracy"].prompts)]
        for each in grouped(rows)
    ]
    return [Table("Probes: mean over seeds [95 %]", ("target", "layer", *names, "prompts"), lines)]


def printed(outcome: dict[str, Any]) -> str:
    """The result as text for the terminal."""
    return "\n".join([*outcome["findings"], f"report: {outcome['report']}"])
