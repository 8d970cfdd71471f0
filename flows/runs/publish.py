"""Artifacts of a run in the Prefect UI: its findings, tables, figures and report."""

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
LARGEST_FIGURE = 400_000  # bytes; the Prefect server stores artifacts in its database


def tell_findings(findings: Iterable[str], about: str) -> None:
    """Publishes the findings as a list."""
    create_markdown_artifact("\n".join(f"- {line}" for line in findings), key="summary", description=about)


def tell_report(run: Run) -> None:
    """Publishes a link to the report, and the command for browsers that do not open links to files."""
    assert run.report is not None
    text = f"`sublim report {run.name}` prints its path on a machine with the same store ({run.store.root})."
    create_link_artifact(report_address(run), link_text=run.report.name, key="report", description=text)


def report_address(run: Run) -> str:
    """The report's URL: below SUBLIM_REPORTS, an address that serves the store's `runs` folder, or else a file URL."""
    assert run.report is not None
    served = os.environ.get("SUBLIM_REPORTS")
    if not served:
        return run.report.as_uri()
    return f"{served.rstrip('/')}/{run.report.relative_to(run.store.root / 'runs').as_posix()}"


def tell_tables(tables: Sequence[Table]) -> None:
    """Publishes each table under a key made from its title."""
    for table in tables:
        rows = [dict(zip(_distinct(table.columns), row, strict=True)) for row in table.rows]
        create_table_artifact(rows, key=key_of(table.title), description=table.title)


def tell_figures(figures: Iterable[FigureFile]) -> None:
    """Publishes each figure, except those that are too large for the server's database."""
    for path, caption in figures:
        if path.stat().st_size <= LARGEST_FIGURE:
            create_image_artifact(data_uri(path), key=key_of(path.stem), description=caption)


def data_uri(path: Path) -> str:
    """A figure as a data URL."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def key_of(title: str) -> str:
    """A title as an artifact key, which may only have lower-case letters, digits and dashes."""
    return "-".join(re.findall(r"[a-z0-9]+", title.partition(":")[0].lower()))[:60]


def _distinct(columns: Sequence[str]) -> list[str]:
    """Column names made distinct by trailing spaces, because each row of a table artifact is a mapping."""
    return [name + " " * columns[:place].count(name) for place, name in enumerate(columns)]


def publish_toy(run: Run, shown: FlowReport) -> dict[str, Any]:
    """Writes the report, publishes it in the UI, and returns the keys that all flows print with `--json`."""
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
