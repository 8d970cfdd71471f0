"""What the toy flows leave alike: the report, its note in Prefect's UI, and the keys that every `--json` has."""

from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.runs import Run
from sublim.toy_report import ToyReport, write_toy_report


def publish_toy(run: Run, shown: ToyReport) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns the keys that all flows print."""
    run.report = write_toy_report(run.folder, shown)
    create_markdown_artifact(
        "\n".join(f"- {line}" for line in shown.findings), key="summary", description=shown.question
    )
    create_link_artifact(run.report.as_uri(), link_text=run.report.name, key="report")
    return {
        "flow": run.flow,
        "preset": run.preset,
        "stages": run.stage_table(),
        "report": str(run.report),
        "run": run.name,
        "seconds": round(run.seconds, 3),
    }
