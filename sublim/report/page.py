"""What every report is made of: its templates, and the plain report of findings, figures and tables.

A report is one HTML file that opens anywhere and offline. All of them extend base.html.j2. The pipeline's own report is
in `sublim.report.render`; the other flows write a `FlowReport`.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined

LONGEST_NUMBER = 28
"""Characters beyond which a cell is a text, which may take several lines."""


class Table(NamedTuple):
    """A heading, column names and rows of cells as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """What the numbers mean, below the heading."""


class FigureFile(NamedTuple):
    """An SVG file and what it shows."""

    path: Path
    caption: str


class FlowReport(NamedTuple):
    """The content of a flow's report."""

    title: str
    question: str
    findings: Sequence[str]
    """Sentences that answer the question, with numbers."""
    tables: Sequence[Table]
    figures: Sequence[FigureFile]
    stages: Sequence[Mapping[str, Any]]
    """One mapping for each stage: stage, label, state, seconds, key and content."""
    settings: Mapping[str, Any]


def write_flow_report(folder: Path, report: FlowReport) -> Path:
    """Writes report.html into `folder` and returns its path."""
    return write_page(folder, fill("flow.html.j2", report._asdict()))


def write_page(folder: Path, html: str) -> Path:
    """Writes report.html into `folder`, which is made where it is missing, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def fill(template: str, content: Mapping[str, Any]) -> str:
    """A report as HTML. `content` has title, question, stages, settings, and what `template` shows besides.

    All text is escaped, because models and users wrote some of it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    functions: dict[str, Any] = {"duration": duration, "wordy_columns": wordy_columns, "data_uri": data_uri}
    environment.globals.update(functions)
    given = {"kicker": (), "seconds": 0, "lineage": None, "edges": (), "provenance": {}, **content}
    return environment.get_template(template).render(given | {"settings": flatten(content["settings"])})


def wordy_columns(rows: Sequence[Sequence[str]]) -> set[int]:
    """The columns of text: the first one and those with a cell too long for a number. The others align right."""
    return {i for i, cells in enumerate(zip(*rows, strict=True)) if i == 0 or max(map(len, cells)) > LONGEST_NUMBER}


def data_uri(path: Path) -> str:
    """An SVG file as the address of an image. Drawn inline, two figures might use the same id for different clips."""
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def bounded(estimate: float, low: float | None, high: float | None, digits: int = 2) -> str:
    """`0.54 [0.52, 0.56]`, or the estimate alone where a single unit gives no interval."""
    text = f"{estimate:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `9.31 s`, `2 min 22 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as pairs of a dotted name and a JSON value."""
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += flatten(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", orjson.dumps(value).decode()))
    return found
