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


def publish_report(run: Run, shown: FlowReport) -> dict[str, Any]:
    """Writes the report, publishes it in the UI, and returns the keys that all flows print with `--json`."""
    run.report = write_flow_report(run.folder, shown)
    publish_findings(shown.findings, shown.question)
    publish_tables(shown.tables)
    publish_figures(shown.figures)
    publish_link(run)
    return {
        "flow": run.flow,
        "preset": run.preset,
        "stages": run.stage_table(),
        "report": str(run.report),
        "run": run.name,
        "seconds": round(run.seconds, 3),
    }


def publish_findings(findings: Iterable[str], about: str) -> None:
    """Publishes the findings as a list."""
    create_markdown_artifact("\n".join(f"- {line}" for line in findings), key="summary", description=about)


def publish_link(run: Run) -> None:
    """Publishes a link to the report, and the command for browsers that do not open links to files.

    The address is below SUBLIM_REPORTS, where the store's `runs` folder is served, or else a file URL.
    """
    assert run.report is not None
    served = os.environ.get("SUBLIM_REPORTS")
    place = run.report.relative_to(run.store.root / "runs").as_posix()
    text = f"`sublim report {run.name}` prints its path on a machine with the same store ({run.store.root})."
    create_link_artifact(
        f"{served.rstrip('/')}/{place}" if served else run.report.as_uri(),
        link_text=run.report.name,
        key="report",
        description=text,
    )


def publish_tables(tables: Iterable[Table]) -> None:
    """Publishes each table under a key made from its title."""
    for table in tables:
        rows = [dict(zip(_distinct(table.columns), row, strict=True)) for row in table.rows]
        create_table_artifact(rows, key=key_of(table.title), description=table.title)


def publish_figures(figures: Iterable[FigureFile]) -> None:
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
