"""The report: one HTML file that opens anywhere, offline, and a summary for machines beside it.

It imports no plotting library and no torch: on a fully cached run it is most of what is left to do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sublim.report.costs import cost_figures
from sublim.report.diagnostics import divergence_rows, loss_rows, matched_rows, shift_rows
from sublim.report.figures import confusion_figure, figures_of
from sublim.report.files import write_figures
from sublim.report.lineage import lineage_plot
from sublim.report.shown import RunReport
from sublim.report.summary import summary
from sublim.report.wording import EFFECT_UNIT, NAMES, interval, level, meaning, power_note, signed, verdict


def write_report(folder: Path, run: RunReport) -> Path:
    """Writes report.html, summary.json and the figures into `folder` and returns the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_bytes(orjson.dumps(summary(run), option=orjson.OPT_INDENT_2))
    write_figures(folder, run)
    path = folder / "report.html"
    path.write_text(render(run), encoding="utf-8")
    return path


def render(run: RunReport) -> str:
    """The report as HTML. Everything that a model or a user wrote is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        targets=[(shown, [*figures_of(shown), *cost_figures(shown)]) for shown in run.targets],
        confusion=confusion_figure(run.confusion) if run.confusion else None,
        lineage=lineage_plot(run.stages, run.edges),
        stages_by_key={stage.key: stage for stage in run.stages},
        states=count_states(run),
        settings=flatten(run.settings),
        names=NAMES,
        effect_unit=EFFECT_UNIT,
        divergence_rows=divergence_rows,
        duration=duration,
        interval=interval,
        level=level,
        loss_rows=loss_rows,
        matched_rows=matched_rows,
        meaning=meaning,
        power_note=power_note,
        share=share,
        shift_rows=shift_rows,
        signed=signed,
        verdict=verdict,
    )


def count_states(run: RunReport) -> dict[str, int]:
    """How many stages ended in each state."""
    states = [stage.state for stage in run.stages]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def share(part: int, whole: int) -> str:
    """A share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as dotted keys and JSON values."""
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += flatten(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", orjson.dumps(value).decode()))
    return found
