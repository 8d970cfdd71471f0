"""The figures of a report as SVG files, and their numbers as CSV files, in the folder `figures` beside the report."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sublim.report.costs import cost_figures
from sublim.report.figure import Figure
from sublim.report.figures import confusion_figure, figures_of
from sublim.report.shown import RunReport
from sublim.report.specific import specific_figures

STYLE = Path(__file__).parent / "report.css"


def write_figures(folder: Path, run: RunReport) -> None:
    """Writes an SVG and a CSV file for each figure, and a CSV file for each diagnostic."""
    directory = folder / "figures"
    directory.mkdir(exist_ok=True)
    for stem, figure in named_figures(run):
        if figure.drawing:
            write_svg(directory / f"{stem}.svg", figure)
        write_csv(directory / f"{stem}.csv", figure.values, figure.columns)
    for stem, rows in (run.diagnostics.tables() if run.diagnostics else {}).items():
        write_csv(directory / f"{stem}.csv", rows, [])


def write_svg(path: Path, figure: Figure) -> None:
    """Writes a figure's drawing as a file that can be opened without the report."""
    style = svg_style(STYLE.read_text(encoding="utf-8"))
    path.write_text(str(figure.drawing).replace(">", f"><style>{style}</style>", 1), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> None:
    """Writes a table. The header is `columns` where there are no rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else columns)
        table.writeheader()
        table.writerows(rows)


def named_figures(run: RunReport) -> Iterator[tuple[str, Figure]]:
    """All figures of a run, each with the stem of its file name: `owl-arms`, `confusion`."""
    for shown in run.targets:
        for figure in (*figures_of(shown), *cost_figures(shown)):
            yield f"{slug(shown.target)}-{slug(figure.name)}", figure
    for figure in specific_figures(run):
        yield slug(figure.name), figure
    if run.confusion:
        yield "confusion", confusion_figure(run.confusion)


def slug(name: str) -> str:
    """`name` as a part of a file name."""
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")


def svg_style(css: str) -> str:
    """The rules of the report's style sheet that figures need, with the light colours filled in.

    An SVG file carries them itself, so that it can be opened without the report.
    """
    values = dict(re.findall(r"(--[a-z-]+): ([^;]+);", css[: css.index("@media")]))
    rules = [line.removeprefix("svg ") for line in css.splitlines() if line.startswith("svg ")]
    filled = re.sub(r"var\((--[a-z-]+)\)", lambda found: values[found[1]], "\n".join(rules))
    return f"svg {filled}" if filled.startswith("{") else filled
