"""What a run shows in the Prefect UI: its findings, tables, figures and report."""

import base64
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.runs.record import Run
from sublim.report.page import FigureFile, FlowReport, Table, write_flow_report

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
LARGEST_FIGURE = 400_000  # bytes; the server keeps artifacts in its database


def tell_findings(findings: Iterable[str], about: str) -> None:
    """The findings, as a list."""
    create_markdown_artifact("\n".join(f"- {line}" for line in findings), key="summary", description=about)


def tell_report(run: Run) -> None:
    """A link to the report, and the command that opens it where a browser may not follow the link."""
    assert run.report is not None
    text = f"`sublim report {run.name}` opens it on a machine that shares the store ({run.store.root})."
    create_link_artifact(report_address(run), link_text=run.report.name, key="report", description=text)


def report_address(run: Run) -> str:
    """Where a browser finds the report: below SUBLIM_REPORTS, which serves the store's `runs`, or as a file."""
    assert run.report is not None
    served = os.environ.get("SUBLIM_REPORTS")
    if not served:
        return run.report.as_uri()
    return f"{served.rstrip('/')}/{run.report.relative_to(run.store.root / 'runs').as_posix()}"


def tell_tables(tables: Sequence[Table]) -> None:
    """Each table under a key made of its heading."""
    for table in tables:
        rows = [dict(zip(_distinct(table.columns), row, strict=True)) for row in table.rows]
        create_table_artifact(rows, key=key_of(table.title), description=table.title)


def tell_figures(figures: Iterable[FigureFile]) -> None:
    """Each figure as an image; one too large for the server's database is only in the report."""
    for path, caption in figures:
        if path.stat().st_size <= LARGEST_FIGURE:
            create_image_artifact(data_uri(path), key=key_of(path.stem), description=caption)


def data_uri(path: Path) -> str:
    """A figure as an address that holds it."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def key_of(title: str) -> str:
    """A heading as an artifact's key, which has only letters, digits and dashes."""
    return "-".join(re.findall(r"[a-z0-9]+", title.partition(":")[0].lower()))[:60]


def _distinct(columns: Sequence[str]) -> list[str]:
    """Column names that occur once each: a table artifact is a list of mappings."""
    return [name + " " * columns[:place].count(name) for place, name in enumerate(columns)]


def publish_toy(run: Run, shown: FlowReport) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns the keys that all flows print."""
    run.report = write_flow_report(run.folder, shown)
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
