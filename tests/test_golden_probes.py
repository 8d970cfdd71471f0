"""What the stages of probes write on a tiny input, held fixed: `tests/test_golden.py` says what a failure means."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sublim.probes.config import AdamFit, FullFit, ProbeFiguresConfig, ProbesConfig, ProbeSummaries
from sublim.probes.figures import draw_probes
from sublim.probes.fit_probes import fit_probes
from tasks import stages
from tests.sublim.probes.test_fit_probes import classes, payload
from tests.test_golden import ADVICE, run

ERROR_BARS = re.compile(r'<g id="LineCollection_\d+">(.*?)</g>', re.DOTALL)
HEIGHTS = re.compile(r"M [\d.]+ ([\d.]+) \s*L [\d.]+ ([\d.]+)")
EXPECTED = {
    "adam": [0.690972, 0.555785, 0.869767, 0.430556, 0.249689, 0.632068, -0.0932865, 0.520833, 15.55028],
    "full": [0.864583, 0.753998, 0.967227, 0.486111, 0.29546, 0.680891, 0.0299733, 0.604167, 17.27151],
}
BARS = [[162.4, 107.1, 79.5, 24.1, 107.1, 51.8], [190.1, 134.8]]
"""Ends of those of the probes and of shuffled labels: a tenth is 27.7 points, and what is higher is less."""


@pytest.mark.parametrize("kind", EXPECTED)
def test_probes_are_those_they_were(kind: str, tmp_path: Path) -> None:
    control = payload(tmp_path / "c", classes(0, 60))
    targets = {name: payload(tmp_path / name, classes(seed, 60, shift=1.5)) for seed, name in ((1, "owl"), (2, "wolf"))}
    fit: Any = AdamFit(epochs=5, lr=1e-2) if kind == "adam" else FullFit()
    config = ProbesConfig(seeds=(0, 1), fit=fit, draws=100)
    out = run(fit_probes, tmp_path / "p", config, target=targets, control=control)
    rows = ProbeSummaries.model_validate_json((out / "summary.json").read_bytes()).rows
    summary = {(row.target, row.layer, row.metric): row for row in rows}
    owl, all_layers = summary["owl", 7, "auc"], summary["multiclass", -1, "accuracy"]
    found = [
        *(owl.estimate, owl.low, owl.high),
        *(all_layers.estimate, all_layers.low, all_layers.high),
        summary["wolf", 7, "selectivity"].low,
        summary["owl", 3, "shuffled"].estimate,
        pl.read_parquet(out / "probes.parquet")["f1"].sum(),
    ]
    assert (stages.fit_probes.version, len(rows)) == (1, 3 * 3 * 7)
    assert found == pytest.approx(EXPECTED[kind], rel=1e-3), ADVICE.format(name="fit_probes")


def test_the_figure_of_probes_is_what_it_was(tmp_path: Path) -> None:
    """A panel for each target; the heights of its error bars, which are the intervals, to a point."""
    shared = {"seeds": 5, "prompts": 40, "chance": 0.5, "target": "owl"}
    points = ((0, "accuracy", 0.6), (9, "accuracy", 0.9), (-1, "accuracy", 0.8), (0, "shuffled", 0.5))
    rows = [
        {**shared, "layer": layer, "metric": metric, "estimate": at, "low": at - 0.1, "high": at + 0.1}
        for layer, metric, at in points
    ]
    rows += [{**row, "target": "wolf"} for row in rows]
    (tmp_path / "in").mkdir()
    summaries = ProbeSummaries.model_validate({"about": "", "rows": rows})
    (tmp_path / "in/summary.json").write_text(summaries.model_dump_json())
    drawn = (run(draw_probes, tmp_path / "d", ProbeFiguresConfig(), probes=tmp_path / "in") / "probes.svg").read_text()
    bars = [[float(each) for pair in HEIGHTS.findall(part) for each in pair] for part in ERROR_BARS.findall(drawn)]
    assert stages.draw_probes.version == 1
    assert len(re.findall(r'<g id="axes_\d+">', drawn)) == 2
    assert bars[:4] == [pytest.approx(each, abs=1) for each in (*BARS, *BARS)], ADVICE.format(name="draw_probes")
