"""The sweep flow: which targets, arms and settings show an effect, over seeds and blocks, in one table.

    sublim run sweep --preset quickstart
    sublim run sweep --config plan.yaml --set where.kind=pool --set where.deployment=pipeline/a6000
    sublim run sweep --freeze plan.yaml
    prefect deployment run sweep/cpu -p preset=quickstart

The grid is targets × arms × seeds × any settings of the pipeline. Every cell is a cached pipeline, and cells share the
stages that they have in common. Cells run one after another in this process, or in parallel on a work pool. A cell that
fails leaves its reason in the table, and the others go on. `--freeze` writes down the digest of the plan before the
first result exists (pre-registration).
"""

import shutil
from typing import Any

import polars as pl
from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.runs.parameters import Loader
from flows.runs.publish import publish_report
from flows.runs.record import Run, recorded
from flows.sweep.cells import cells_of, check_cells
from flows.sweep.config import Pool, SweepConfig
from flows.sweep.gather import gather
from flows.sweep.preregistration import Verdict, verdict
from flows.sweep.run_cells import Outcome, check_deployment, run_cells
from flows.sweep.specific import GridPoint, specific_effects, specific_maps, specific_table
from sublim.report.page import FigureFile, FlowReport, Table, bounded
from sublim.store.manifest import Artifact
from sublim.store.payloads import committed

CAPTIONS = {
    "effects": "Effects of the primary metric, student minus control, with {level:.4g} % intervals: thick for these "
    "questions, thin for new questions too; ticks are single pairs",
    "cost": "Change in MMLU-Pro accuracy against effect, both student minus control, with {level:.4g} % intervals",
}

load_config = Loader("sweep", SweepConfig)


def check(config: SweepConfig) -> None:
    """Raises UserError when it is already known that a cell cannot run. A pool's machines check their own cells."""
    cells = cells_of(config)
    if not isinstance(config.where, Pool):
        check_cells(cells)


@flow(name="sweep", flow_run_name=load_config.run_name(lambda config: f"sweep {', '.join(config.target)}"))
def sweep(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Runs a grid of pipelines and puts their effects into one table.

    Args:
        preset: The preset to start from: quickstart, arms, or the path of a YAML file.
        target: The target word, or several as in owl,wolf; null for those of the preset.
        settings: Settings that replace those of the preset, as a nested mapping.
    """
    config = load_config(preset, target, settings)
    check(config)
    if isinstance(config.where, Pool):
        check_deployment(config.where)
    cells = cells_of(config)
    with recorded("sweep", preset, ",".join(config.target)) as run:
        outcomes = run_cells(config, cells, run.store)
        table = gather(config, outcomes)
        results = [each for outcome in outcomes for each in outcome.results if each.artifact.stage == "compare"]
        specific = specific_effects(config, outcomes, run.store)
        return publish(run, config, outcomes, table, verdict(config, cells, run.store, results), specific)


def publish(
    run: Run,
    config: SweepConfig,
    outcomes: list[Outcome],
    table: Artifact,
    followed: Verdict,
    specific: list[GridPoint],
) -> dict[str, Any]:
    """Writes the report, publishes it in the UI, and returns what `--json` prints."""
    payload = run.store.payload(table)
    for name in committed(payload):
        shutil.copyfile(payload / name, run.folder / name)
    rows = pl.read_parquet(payload / "table.parquet").to_dicts()
    failed = [{"cell": each.cell.name, "reason": each.reason} for each in outcomes if each.reason]
    found = [
        followed.sentence,
        *(point.finding() for point in specific),
        *findings(config, rows),
        *(f"failed: {each['cell']}: {each['reason']}" for each in failed),
    ]
    shown = FlowReport(
        title=f"Sweep: {config.about or run.preset}",
        question="Which targets, arms and settings show an effect?",
        findings=found,
        tables=[*([specific_table(specific)] if specific else []), effects_table(rows), cells_table(outcomes)],
        figures=[
            *specific_maps(run.folder, specific),
            *(
                FigureFile(path, text.format(level=100 * config.level))
                for name, text in CAPTIONS.items()
                if (path := payload / f"{name}.svg").exists()
            ),
        ],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    known = [{name: value for name, value in row.items() if value is not None} for row in rows]
    create_table_artifact(known, key="effects", description=shown.title)
    return {
        **publish_report(run, shown),
        "cells": len(outcomes),
        "cached": sum(each.state == "Cached" for each in outcomes),
        "failed": len(failed),
        "failures": failed,
        "table": str(payload / "table.parquet"),
        "plan": {"digest": followed.digest, "followed": followed.followed, "about": followed.sentence},
        "specificity": [point.json() for point in specific],
        "findings": found,
    }


def findings(config: SweepConfig, rows: list[dict[str, Any]]) -> list[str]:
    """One line for each effect of the primary metric."""
    return [f"{label(row)}: {told(row)}" for row in rows if row["metric"] == config.primary]


def label(row: dict[str, Any]) -> str:
    """A row's place in the grid, in words."""
    axes = [f"{name.rpartition('.')[2]} {row[name]}" for name in row if "." in name]
    updates = [f"{row['updates']} updates"] if row["updates"] else []
    return ", ".join([row["target"], " ".join(filter(None, (row["arm"], row["of"]))), *axes, *updates])


def told(row: dict[str, Any]) -> str:
    """An effect in words, or why it is missing."""
    if row["estimate"] is None:
        return f"missing: {row['reason']}"
    number = bounded(row["estimate"], row["low"], row["high"])
    tests = ""
    if row["p"] is not None:
        tests = f", p {row['p']:.3g}"
        tests += f" ({row['p_corrected']:.3g} {row['corrected']})" if row["p_corrected"] is not None else ""
        tests += f", {row['p_holm']:.3g} holm over all {row['comparisons']} tests here"
        tests += f", sign flips {row['p_flips']:.3g} (smallest possible {row['p_flips_smallest']:.3g})"
        tests += f", 80 % power for {row['detectable']:.2g}" if row["detectable"] is not None else ""
    expected = f", expected {row['expected']}" if row["expected"] else ""
    missing = f"; {row['reason']}" if row["reason"] else ""
    return f"{number} {row['unit']}, {row['units']} units{tests}{expected}{missing}"


def effects_table(rows: list[dict[str, Any]]) -> Table:
    """Every effect of every metric."""
    cells = [effect_cells(row) for row in rows]
    return Table("Effects: student minus control", [*cells[0]], [[*each.values()] for each in cells])


def effect_cells(row: dict[str, Any]) -> dict[str, str]:
    """An effect as cells by column; without an estimate, the reason stands in place of all numbers."""
    missing = row["estimate"] is None

    def number(name: str) -> str:
        return "–" if missing or row[name] is None else f"{row[name]:.3g}"

    def interval(low: str, high: str) -> str:
        return "–" if missing else bounded(row["estimate"], row[low], row[high], 3)

    return {
        "effect": label(row),
        "metric": row["metric"],
        "student": number("student"),
        "control": number("control"),
        "these questions": f"missing: {row['reason']}" if missing else interval("low", "high"),
        "questions too": interval("low_questions", "high_questions"),
        "p": number("p"),
        "corrected": number("p_corrected"),
        "over all tests": number("p_holm"),
        "80 % power for": number("detectable"),
        "units": "–" if missing else str(row["units"]),
    }


def cells_table(outcomes: list[Outcome]) -> Table:
    """The state of every cell, with the reason of each that failed."""
    return Table(
        "Cells", ("cell", "state", "reason"), [[each.cell.name, each.state, each.reason or ""] for each in outcomes]
    )


def printed(outcome: dict[str, Any]) -> str:
    """The result as text for the terminal."""
    counts = f"{outcome['cells']} cells, {outcome['cached']} of them cached, {outcome['failed']} failed"
    return "\n".join([*outcome["findings"], counts, f"table: {outcome['table']}", f"report: {outcome['report']}"])
