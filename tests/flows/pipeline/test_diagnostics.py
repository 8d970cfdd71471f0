"""What diagnostics could not measure is missing with its reason, in the result, on the page and in the files."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from flows.pipeline.arms import Contrast, StudentSet
from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import BaseKey, ModelKey, StudentKey, Unit
from flows.pipeline.report_diagnostics import diagnostics_of
from flows.pipeline.study import Diagnosed
from flows.runs.settings import build, load_preset, merge
from sublim.diagnostics.config import Shift, Shifts, UnseenLoss, UnseenLosses
from sublim.evals.preference.config import MetricComparison
from sublim.report.diagnostics import DiagnosticsShown
from sublim.report.render import write_report
from sublim.report.shown import RunReport
from sublim.store.manifest import Artifact


def told(folder: Path) -> DiagnosticsShown:
    """Two pairs; the second control's training diverged and the first student did not move."""

    def kept(name: str, file: str, payload: UnseenLosses | Shifts) -> Artifact:
        path = folder / name.replace("/", "-")
        path.mkdir()
        (path / file).write_text(payload.model_dump_json())
        return Artifact(content=path.name, stage="", key=path.name)

    def losses(key: ModelKey, owl: float | None, control: float | None) -> tuple[ModelKey, Artifact]:
        values = {"owl": owl, "control": control}
        found = {
            rows: UnseenLoss(nats_per_token=value, tokens=10, rows=2, digit_nats=value, digit_tokens=6)
            for rows, value in values.items()
        }
        return key, kept(str(key), "losses.json", UnseenLosses(losses=found))

    def shift(cosine: float | None) -> Shift:
        return Shift(cosine=cosine, norm=0.0, teacher_norm=1.0, modules={"model.q_proj": cosine})

    moved = {"owl/0": shift(None), "owl/1": shift(0.4), "control/0": shift(0.1), "control/1": shift(0.2)}
    found = Diagnosed(
        losses=dict(
            [
                losses(BaseKey(), 2.0, 2.0),
                losses(StudentKey("owl", Unit(0, 0), None), 1.5, 1.9),
                losses(StudentKey("owl", Unit(0, 1), None), 1.7, 1.9),
                losses(StudentKey("control", Unit(0, 0), None), 1.9, 1.6),
                losses(StudentKey("control", Unit(0, 1), None), None, None),
            ]
        ),
        shifts={"owl": kept("shifts", "shift.json", Shifts(students=moved))},
        divergence={},
        missing={"divergence owl": "a steered teacher's logits are not read"},
    )
    settings = {"seeds": [0, 1], "diagnostics": "all"}
    config = build(PipelineConfig, merge(load_preset("pipeline", "quickstart"), settings))
    margin = MetricComparison(
        unit="nats",
        base=0.0,
        teacher=9.0,
        student=1.0,
        control=0.5,
        students=[1.0] * 2,
        controls=[0.5] * 2,
        effect=None,
    )
    results = SimpleNamespace(main=lambda *_: SimpleNamespace(metrics={"margin": margin}))
    run = SimpleNamespace(store=SimpleNamespace(payload=lambda artifact: folder / artifact.key))
    sets = [StudentSet(name, name, None, "base", [], (None,)) for name in ("owl", "control")]
    trained = SimpleNamespace(sets=sets, units=config.units)
    main = Contrast("owl", None, "owl", "control", (None,))
    study = SimpleNamespace(config=config, trained=trained, main=lambda _: main)
    return diagnostics_of(cast(Any, run), cast(Any, results), cast(Any, study), found)


def test_what_diagnostics_could_not_measure_is_missing_with_its_reason(tmp_path: Path) -> None:
    shown = told(tmp_path)
    means = {(row.model, row.rows_of): (row.loss, row.reason) for row in shown.losses}
    assert means["students of owl", "owl"] == (1.6, None)
    assert means["controls", "control"] == (None, "the loss is not finite: the training diverged")
    [matched], [shift], [divergence] = shown.matched, shown.shift, shown.divergence
    assert (matched.estimate, matched.equal_updates, matched.low) == (None, None, None)
    assert matched.reason == "too few checkpoints (1): 3 or more are needed (evaluation.updates)"
    assert {row.digits for row in shown.losses if row.model == "students of owl"} == {1.6, 1.9}
    assert (shift.student, shift.difference, shift.low) == (0.4, 0.2, None)
    assert shift.reason == "a student or control did not move its weights"
    assert (divergence.share, divergence.reason) == (None, "a steered teacher's logits are not read")
    report = RunReport(title="t", question="q", flow="pipeline", preset="p", targets=[], diagnostics=shown)
    page = write_report(tmp_path / "report", report).read_text()
    for row in (means["controls", "control"][1], matched.reason, shift.reason, "a steered teacher&#39;s logits"):
        assert str(row) in page
    with (tmp_path / "report/figures/diagnostics-losses.csv").open() as file:
        rows = {(row["model"], row["rows_of"]): row["loss"] for row in csv.DictReader(file)}
    assert rows["controls", "owl"] == ""
