"""Every figure of a report as an SVG file, and the numbers behind it as a CSV file, in `figures` beside the report."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sublim.report.costs import cost_figures
from sublim.report.figures import Figure, confusion_figure, figures_of
from sublim.report.shown import RunReport

STYLE = Path(__file__).parent / "report.css"


def write_figures(folder: Path, run: RunReport) -> list[str]:
    """Writes the files and returns their names, SVG and CSV in turn."""
    directory = folder / "figures"
    directory.mkdir(exist_ok=True)
    style = svg_style(STYLE.read_text(encoding="utf-8"))
    names: list[str] = []
    for stem, figure in named_figures(run):
        if figure.drawing:
            drawing = str(figure.drawing).replace(">", f"><style>{style}</style>", 1)
            (directory / f"{stem}.svg").write_text(drawing, encoding="utf-8")
            names.append(f"{stem}.svg")
        names.append(write_csv(directory / f"{stem}.csv", figure.values, figure.columns))
    for stem, rows in (run.diagnostics.tables() if run.diagnostics else {}).items():
        names.append(write_csv(directory / f"{stem}.csv", rows, []))
    return names


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> str:
    """Writes a table with a header, `columns` where there are no rows, and returns the file's name."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else columns)
        table.writeheader()
        table.writerows(rows)
    return path.name


def named_figures(run: RunReport) -> Iterator[tuple[str, Figure]]:
    """All figures of a run with the stems of their files: `owl-arms`, `confusion`."""
    for shown in run.targets:
        for figure in (*figures_of(shown), *cost_figures(shown)):
            yield f"{slug(shown.target)}-{slug(figure.name)}", figure
    if run.confusion:
        yield "confusion", confusion_figure(run.confusion)


def slug(name: str) -> str:
    """`name` as a part of a file's name."""
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")


def svg_style(css: str) -> str:
    """The rules of the report's style sheet that figures need, its light colours put in; a file stands alone."""
    values = dict(re.findall(r"(--[a-z-]+): ([^;]+);", css[: css.index("@media")]))
    rules = [line.removeprefix("svg ") for line in css.splitlines() if line.startswith("svg ")]
    filled = re.sub(r"var\((--[a-z-]+)\)", lambda found: values[found[1]], "\n".join(rules))
    return f"svg {filled}" if filled.startswith("{") else filled
