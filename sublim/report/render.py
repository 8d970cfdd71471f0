"""The pipeline's report as an HTML file, with a summary as JSON and the figures as files beside it.

It imports no plotting library and no torch, because on a fully cached run the report is most of what is left to do.
"""

from pathlib import Path

import orjson

from sublim.report import unread, wording
from sublim.report.carrier import carrier_table, carrier_warnings, examples_of
from sublim.report.costs import cost_figures
from sublim.report.diagnostics import diagnostic_tables
from sublim.report.figures import confusion_figure, figures_of
from sublim.report.files import write_figures
from sublim.report.lineage import lineage_plot
from sublim.report.page import fill, write_page
from sublim.report.shown import RunReport
from sublim.report.specific import lead, lead_more, specific_figures, target_lines
from sublim.report.summary import summary


def write_report(folder: Path, run: RunReport) -> Path:
    """Writes report.html, summary.json and the figures into `folder` and returns the path of the first."""
    path = write_page(folder, render(run))
    (folder / "summary.json").write_bytes(orjson.dumps(summary(run), option=orjson.OPT_INDENT_2))
    write_figures(folder, run)
    return path


def render(run: RunReport) -> str:
    """The report as HTML."""
    content = {
        "run": run,
        **dict(run),
        "kicker": (run.flow, run.preset),
        "targets": [(shown, [*figures_of(shown), *cost_figures(shown)]) for shown in run.targets],
        "lead": lead(run) if run.targets else "",
        "lead_more": lead_more(run),
        "specific": specific_figures(run),
        "placebo": {shown.target: target_lines(run, shown) for shown in run.targets},
        "confusion": confusion_figure(run.confusion) if run.confusion else None,
        "diagnostics": diagnostic_tables(run.diagnostics) if run.diagnostics else (),
        "carrier": carrier_table(run.carrier) if run.carrier else None,
        "carrier_warnings": carrier_warnings(run.carrier),
        "carrier_examples": examples_of(run.carrier),
        "lineage": lineage_plot(run.stages, run.edges),
        "stages_by_key": {stage.key: stage for stage in run.stages},
        "words": wording,
        "unread": unread,
    }
    return fill("pipeline.html.j2", content)
