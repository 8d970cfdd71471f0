"""Every figure of a report as an SVG file, and the numbers behind it as a CSV file, in `figures` beside the report."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from sublim.report_config import RunReport
from sublim.report_figures import Figure, confusion_figure, figures_of

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
        with (directory / f"{stem}.csv").open("w", encoding="utf-8", newline="") as file:
            columns = list(figure.values[0]) if figure.values else figure.table.columns
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(figure.values)
        names.append(f"{stem}.csv")
    return names


def named_figures(run: RunReport) -> Iterator[tuple[str, Figure]]:
    """All figures of a run with the stems of their files: `owl-arms`, `confusion`."""
    for shown in run.targets:
        for figure in figures_of(shown):
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
