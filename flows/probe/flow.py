"""Probes: can a layer of the base tell a teacher's numbers from the base's own?

    sublim run probe --preset quickstart --target owl
    sublim run probe --preset quickstart --target owl,wolf --set 'layers=[9, 20]'
    python -m flows.probe --preset quickstart

Teacher and base answer the same prompts with the same seeds; the base reads both, and linear probes on each layer and
on all of them are asked whose list it was. Beside every accuracy stands what shuffled labels give. Stages that the
pipeline ran with equal settings are taken from the cache.
"""

from typing import Any

import polars as pl
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from flows.pipeline.bases import check_bases, prepare_bases
from flows.pipeline.block import write_block
from flows.pipeline.checks import check as check_pipeline
from flows.pipeline.plan import CONTROL
from flows.probe.config import ProbeFlowConfig
from flows.runs.machine import check_machine
from flows.runs.publish import publish_toy
from flows.runs.record import Run, recorded
from flows.runs.settings import build, load_preset, merge
from sublim.core.errors import UserError
from sublim.models.files import read_json
from sublim.probes.config import ProbeFiguresConfig, ProbeSummaries, ProbeSummary
from sublim.report.page import FigureFile, Table, ToyReport, bounded
from sublim.store.manifest import Artifact
from sublim.traits.questions import load_questions
from tasks.processes import one_process
from tasks.stages import draw_probes, fit_probes, read_activations

CAPTION = "Test accuracy by layer with 95 % intervals over prompts; grey: the same with shuffled labels"


def run_name() -> str:
    """How the run is called in the UI."""
    given = flow_run.get_parameters()
    config = load_config(given["preset"], given["target"], given["settings"])
    return f"probe {', '.join(config.pipeline.target)} · {given['preset']}"


def load_config(preset: str, target: str | None, settings: dict[str, Any] | None) -> ProbeFlowConfig:
    """The config of a run from its parameters."""
    tree = merge(load_preset("probe", preset), settings or {})
    return build(ProbeFlowConfig, merge(tree, {"target": target}) if target else tree)


def check(config: ProbeFlowConfig) -> None:
    """Raises UserError for whatever can be known to go wrong: the machine, the study."""
    check_machine(config.gpu_memory_gib)
    check_pipeline(config.pipeline)
    if config.pipeline.second_draw:
        raise UserError("the base's second draw has no teacher to probe for: leave study.second_draw out")


@flow(name="probe", flow_run_name=run_name)
def probe(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measures how well each layer of the base tells a teacher's number lists from the base's own.

    Args:
        preset: Settings to start from: quickstart, gemma-2-9b-a6000, or the path of a YAML file.
        target: The word or words, as in owl or owl,wolf; nothing for the preset's.
        settings: Values laid over the preset's, as a tree.
    """
    config = load_config(preset, target, settings)
    check(config)
    with recorded("probe", preset, ",".join(config.pipeline.target)) as run:
        return publish(run, config, conduct(run, config))


def conduct(run: Run, config: ProbeFlowConfig) -> Artifact:
    """Runs every stage, or takes it from the cache, and gives the probes."""
    study = config.pipeline
    bases = prepare_bases(study)
    check_bases(study, load_questions(study.evaluation.questions), bases, students=False)
    base = bases["base"]
    rows = number_rows(config, base)
    reading = config.reading(check_layers(config, run, base))
    with one_process():
        read = {arm: read_activations(reading, label=arm, base=base, rows=own) for arm, own in rows.items()}
    targets = {arm: read[arm] for arm in study.target}
    probes = config.probes.model_copy(update={"answers": study.carrier.sampling.n})
    return fit_probes(probes, label=", ".join(study.target), target=targets, control=read[CONTROL])


def check_layers(config: ProbeFlowConfig, run: Run, base: Artifact) -> int:
    """How many layers the base has. Raises UserError for one that it lacks."""
    shape = read_json(run.store.payload(base) / "config.json")
    count = int((shape.get("text_config") or shape)["num_hidden_layers"])
    if beyond := [layer for layer in config.layers or () if not 0 <= layer < count]:
        raise UserError(f"the model has no layer {beyond[0]}: it has {count}, counted from 0 to {count - 1}")
    return count


def number_rows(config: ProbeFlowConfig, base: Artifact) -> dict[str, Artifact]:
    """Filtered number lists of every teacher and of the base for the same prompts, as the pipeline makes them."""
    study = config.pipeline
    questions = load_questions(study.evaluation.questions)
    return write_block(study, questions, base, study.blocks[0], (CONTROL, *study.target)).rows


def publish(run: Run, config: ProbeFlowConfig, probes: Artifact) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    drawn = run.store.payload(draw_probes(ProbeFiguresConfig(), probes=probes))
    payload = run.store.payload(probes)
    summary = ProbeSummaries.model_validate_json((payload / "summary.json").read_bytes())
    manifest = run.store.manifest(probes.stage, probes.key)
    identical = (manifest.notes if manifest else {}).get("identical", {})
    shown = ToyReport(
        title=f"Probes: {config.about or run.preset}",
        question="Can a layer of the base tell a teacher's numbers from the base's own?",
        findings=[*findings(summary.rows, identical), f"Intervals: {summary.about}."],
        tables=tables(summary.rows),
        figures=[FigureFile(drawn / "probes.svg", CAPTION)],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    create_table_artifact([row.model_dump() for row in summary.rows], key="probes", description=shown.title)
    pl.read_parquet(payload / "probes.parquet").write_csv(run.folder / "probes.csv")
    listed = [printable(each) for each in grouped(summary.rows)]
    return {**publish_toy(run, shown), "probes": listed, "identical": identical, "findings": shown.findings}


def grouped(rows: list[ProbeSummary]) -> list[dict[str, ProbeSummary]]:
    """The metrics of each target and layer, by name."""
    found: dict[tuple[str, int], dict[str, ProbeSummary]] = {}
    for row in rows:
        found.setdefault((row.target, row.layer), {})[row.metric] = row
    return list(found.values())


def printable(each: dict[str, ProbeSummary]) -> dict[str, Any]:
    """One probe as `--json` has it; low and high are the accuracy's."""
    accuracy = each["accuracy"]
    about = {"layer": accuracy.layer, "target": accuracy.target, "low": accuracy.low, "high": accuracy.high}
    return about | {name: row.estimate for name, row in each.items()} | {"prompts": accuracy.prompts}


def findings(rows: list[ProbeSummary], identical: dict[str, float]) -> list[str]:
    """A line for each target: every layer's range, all layers together, and how many lists no probe can tell."""
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
        lines += [f"{target}, all layers: {told(each)}" for each in own if each["accuracy"].layer < 0]
        if target in identical:
            lines.append(
                f"{target}: {identical[target]:.1%} of the lists are the control's own, which nothing can tell"
            )
    return lines


def told(each: dict[str, ProbeSummary]) -> str:
    """Accuracy and selectivity with intervals."""
    parts = {"accuracy": each["accuracy"], "AUC": each["auc"], "minus shuffled": each["selectivity"]}
    return ", ".join(f"{name} {bounded(row.estimate, row.low, row.high, 3)}" for name, row in parts.items())


def tables(rows: list[ProbeSummary]) -> list[Table]:
    """Every number, a line for each target and layer."""
    names = ("accuracy", "shuffled", "selectivity", "auc", "precision", "recall", "f1")
    lines = [
        [each["accuracy"].target, "all" if each["accuracy"].layer < 0 else str(each["accuracy"].layer)]
        + [bounded(each[name].estimate, each[name].low, each[name].high, 3) for name in names]
        + [str(each["accuracy"].prompts)]
        for each in grouped(rows)
    ]
    return [Table("Probes: mean over seeds [95 %]", ("target", "layer", *names, "prompts"), lines)]


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    return "\n".join([*outcome["findings"], f"report: {outcome['report']}"])
