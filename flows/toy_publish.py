"""What the toy flows leave alike: the report, its note in Prefect's UI, and the keys that every `--json` has."""

from typing import Any

from flows.artifacts import tell_figures, tell_findings, tell_report, tell_tables
from flows.runs import Run
from sublim.toy_report import ToyReport, write_toy_report


def publish_toy(run: Run, shown: ToyReport) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns the keys that all flows print."""
    run.report = write_toy_report(run.folder, shown)
    tell_findings(shown.findings, shown.question)
    tell_tables(shown.tables)
    tell_figures(shown.figures)
    tell_report(run)
    return {
        "flow": run.flow,
        "preset": run.preset,
        "stages": run.stage_table(),
        "report": str(run.report),
        "run": run.name,
        "seconds": round(run.seconds, 3),
    }
