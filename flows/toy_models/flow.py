"""Superposition: does a student rebuild a feature that it never learns, because its teacher has it?

    sublim run toy-models --preset quickstart
    sublim run toy-models --preset ten-seeds
    python -m flows.toy_models --preset quickstart

Small autoencoders (20 features in 5 dimensions) are trained as teachers. Students with the same initialisation learn
their outputs with one feature left out of the loss, or learn only auxiliary features that no teacher was trained on.
Every student is compared with the untrained initialisation and with a student that has another initialisation.
"""

import json
from pathlib import Path
from typing import Any

from prefect import flow

from flows.runs.parameters import Loader
from flows.runs.publish import publish_report
from flows.runs.record import Run, recorded
from flows.toy_models.config import ToyModelsConfig, check
from sublim.report.page import FigureFile, FlowReport, Table, bounded
from sublim.store.payloads import matching
from tasks.stages import draw_superposition, train_superposition

CAPTIONS = {
    "rebuilt": "norm and direction of the features that the student did not learn, compared with the teacher's, by "
    "p_active; dotted: the untrained norm after weight decay alone; bands are 95 % intervals over seeds",
    "sparsity": "superposition and polysemanticity against p_active",
    "wtw": "WᵀW of teacher and student, first seed",
    "directions": "cosines between the teacher's features (rows) and the student's (columns), first seed",
}

load_config = Loader("toy_models", ToyModelsConfig)


@flow(name="toy-models", flow_run_name=load_config.run_name(lambda _: "superposition"))
def toy_models(preset: str = "quickstart", settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measures whether students rebuild features that they never learned, in toy models of superposition.

    Args:
        preset: Settings to start from: quickstart, default-sweep, ten-seeds, or the path of a YAML file.
        settings: Values that replace the preset's, as a tree.
    """
    config = load_config(preset, None, settings)
    check(config)
    with recorded("toy-models", preset, "") as run:
        toy = train_superposition(config.sweep())
        figures = draw_superposition(config.figures, toy=toy)
        return publish(run, config, run.store.payload(toy), run.store.payload(figures))


def publish(run: Run, config: ToyModelsConfig, toy: Path, figures: Path) -> dict[str, Any]:
    """Writes the report, creates Prefect's artifacts, and returns what `--json` prints."""
    rebuilt = json.loads((toy / "rebuilt.json").read_bytes())
    found = findings(rebuilt)
    shown = FlowReport(
        title=f"Superposition: {config.about or run.preset}",
        question="Does a student rebuild a feature that it never learns, because its teacher has it?",
        findings=found,
        tables=[table(rebuilt)],
        figures=[
            FigureFile(path, f"Experiment {path.stem.removeprefix(f'{kind}-')}: {text}")
            for kind, text in CAPTIONS.items()
            for path in matching(figures, f"{kind}*.svg")
        ],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    return {
        **publish_report(run, shown),
        "rows": str(toy / "rows.parquet"),
        "rebuilt": rebuilt,
        "findings": found,
    }


def findings(rebuilt: list[dict[str, Any]]) -> list[str]:
    """A sentence for each p_active: how many features exceed what weight decay alone leaves of the initialisation, and
    how many learning shrank below that, with either initialisation."""
    ablation = [row for row in rebuilt if row["experiment"] == "ablation"]
    points = list(dict.fromkeys(row["p_active"] for row in ablation))
    lines: list[str] = []
    for point in points:
        rows = [row for row in ablation if row["p_active"] == point]
        above, below = (_beyond(rows, "excess_over_decay", side) for side in ("low", "high"))
        line = (
            f"p_active {point:g}: {above} of {len(rows)} features rebuilt beyond the initialisation as weight decay "
            f"alone leaves it ({rows[0]['decay']:.3f} of its norm), {below} shrunk below that"
        )
        if "other_excess_over_decay" in rows[0]:
            other = _beyond(rows, "other_excess_over_decay", "low")
            line += f"; {other} rebuilt from another initialisation"
        lines.append(f"{line} (95 % intervals over {rows[0]['seeds']} seeds)")
    return lines


def _beyond(rows: list[dict[str, Any]], name: str, side: str) -> int:
    """Number of intervals that lie above 0 (side low) or below it (side high)."""
    bounds = [row[name][side] for row in rows]
    return sum(bound is not None and (bound > 0 if side == "low" else bound < 0) for bound in bounds)


def table(rebuilt: list[dict[str, Any]]) -> Table:
    """The table of all values of p_active and features."""
    controls = ("untrained", "other init")
    ratio = ("norm ratio", controls[0], "untrained, decayed", "above decay", controls[1])
    columns = ("experiment", "p_active", "feature", *ratio, "cosine", *controls)
    rows: list[list[str]] = []
    for row in rebuilt:
        name = f"{row['experiment']} {row['auxiliary'] or ''}".strip()
        cells = [name, f"{row['p_active']:g}", str(row["feature"]), bounded(row["norm_ratio"], row["low"], row["high"])]
        above = row["excess_over_decay"]
        cells += [f"{row[key]:.2f}" for key in ("init_norm_ratio", "decayed_init_norm_ratio")]
        cells.append(bounded(above["estimate"], above["low"], above["high"]))
        others = ("other_norm_ratio", "cosine", "init_cosine", "other_cosine")
        cells += [f"{row[key]:.2f}" if key in row else "–" for key in others]
        rows.append(cells)
    return Table(
        "Rebuilt features: student, untrained initialisation, student of another initialisation",
        columns,
        rows,
        "A feature that learns nothing ends at its untrained norm times what weight decay leaves "
        f"({rebuilt[0]['decay']:.3f}): above decay is the norm ratio minus that.",
    )


def printed(outcome: dict[str, Any]) -> str:
    """The result as the terminal shows it."""
    return "\n".join([*outcome["findings"], f"rows: {outcome['rows']}", f"report: {outcome['report']}"])
