"""The toy experiments' report: one HTML file with its tables and figures inside, readable offline."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem }
figure { margin: 1rem 0 } figcaption { font-size: .85rem; color: #555 } .wide { overflow-x: auto }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd } pre { background: #262626 } th, td { border-color: #444 }
  img { background: #fff } figcaption { color: #aaa }
}
"""


class Table(NamedTuple):
    """A heading, column names and rows of cells already in words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class FigureFile(NamedTuple):
    """An SVG file and what it shows."""

    path: Path
    caption: str


class ToyReport(NamedTuple):
    """What a report says."""

    title: str
    question: str
    findings: Sequence[str]
    """Sentences that answer the question, with numbers."""
    tables: Sequence[Table]
    figures: Sequence[FigureFile]
    stages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    title = html.escape(table.title)
    return f'<h2>{title}</h2>\n<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _figure(figure: FigureFile) -> str:
    # As an image, not inline: two figures may use one id for different clips.
    data = base64.b64encode(figure.path.read_bytes()).decode()
    caption = html.escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def render(report: ToyReport) -> str:
    """The report as HTML."""
    stages = Table(
        "Stages",
        ("stage", "state", "seconds", "key"),
        [
            (f"{run['stage']} {run['label']}", run["state"], f"{run['seconds']:.1f}", run["key"][:12])
            for run in report.stages
        ],
    )
    settings = orjson.dumps(dict(report.settings), option=orjson.OPT_INDENT_2).decode()
    title = html.escape(report.title)
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{html.escape(report.question)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in report.findings) + "</ul>",
        *map(_figure, report.figures),
        *map(_table, report.tables),
        _table(stages),
        f"<h2>Settings</h2>\n<pre>{html.escape(settings)}</pre>",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n' + (
        "\n".join(parts) + "\n</body></html>\n"
    )


def write_toy_report(folder: Path, report: ToyReport) -> Path:
    """Writes report.html into `folder` and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(render(report), encoding="utf-8")
    return path


def bounded(estimate: float, low: float | None, high: float | None, digits: int = 2) -> str:
    """`0.54 [0.52, 0.56]`, or the estimate alone where one unit gives no interval."""
    text = f"{estimate:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
