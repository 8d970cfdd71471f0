"""The report: self-contained, escaped, honest about what is missing, and quick."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sublim.plots.charts import Bar, dot_plot
from sublim.plots.svg import ticks
from sublim.report.costs import cost_figures
from sublim.report.figures import figures_of
from sublim.report.lineage import lineage_plot
from sublim.report.page import duration
from sublim.report.render import render, write_report
from sublim.report.shown import ArmShown, CostShown, Edge, RunReport, StageShown
from sublim.report.summary import markdown_summary, table_rows
from sublim.report.tested import EquivalenceShown, RunTests
from sublim.report.wording import few_teachers, headline, verdict
from tests.sublim.report.report_sample import stages_of, study


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return study(tmp_path_factory.mktemp("study"), {"owl": 0.45, "wolf": 0.3})


@pytest.fixture(scope="module")
def unsampled(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return study(tmp_path_factory.mktemp("unsampled"), {"owl": 0.45}, pairs=1, rate=None)


class Balance(HTMLParser):
    """Fails on a tag that closes what it did not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_opens_offline(run: RunReport, tmp_path: Path) -> None:
    html = write_report(tmp_path, run).read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", html)
    assert not re.search(r"@import|url\(", html)
    balance = Balance()
    balance.feed(html)
    assert balance.open == []


def test_the_headline_carries_both_intervals_units_and_questions(run: RunReport) -> None:
    html = render(run)
    effect = run.targets[0].comparison.metrics["margin"].effect
    assert effect is not None
    assert effect.low is not None
    assert f"+{effect.estimate:.2f}" in html
    assert f"{effect.low:+.2f}".replace("-", "−") in html
    assert "these questions" in html
    assert "questions too" in html
    assert "3 seeds × 50 questions" in html
    assert "conditional on its one teacher" in html
    assert "With 3 units that vary as much as these, a true effect of" in html


def test_an_effect_says_how_many_teachers_are_behind_it(run: RunReport) -> None:
    comparison = run.targets[0].comparison
    assert headline(comparison).endswith(", one teacher.")
    assert "(one teacher)" in verdict(comparison, "margin")
    assert "One teacher: the intervals speak of other students of this teacher" in render(run)
    blocks = comparison.model_copy(update={"unit": "block"})
    assert headline(blocks).endswith(", 3 teachers.")
    assert few_teachers(blocks) == "The intervals speak of other teachers, on the word of 3; a headline wants 5."
    effect = blocks.metrics["margin"].effect
    assert effect is not None
    five = blocks.metrics["margin"].model_copy(update={"effect": effect.model_copy(update={"units": 5})})
    assert few_teachers(blocks.model_copy(update={"metrics": {**blocks.metrics, "margin": five}})) == ""


def test_tests_stand_beside_effects_and_survivors_are_named(run: RunReport, tmp_path: Path) -> None:
    tests = RunTests(count=12, smallest_sign_flip_p=0.25, alpha=0.05, surviving=["owl, 64 updates, margin"])
    comparison = run.targets[0].comparison
    margin = comparison.metrics["margin"]
    assert margin.effect is not None
    assert "p" not in margin.effect.model_dump()  # what a report did not test has none
    effect = margin.effect.model_copy(update={"p": 0.0021, "p_holm": 0.025, "comparisons": 12})
    metrics = {**comparison.metrics, "margin": margin.model_copy(update={"effect": effect})}
    shown = run.targets[0].model_copy(update={"comparison": comparison.model_copy(update={"metrics": metrics})})
    tested = run.model_copy(update={"tests": tests, "targets": [shown]})
    html = write_report(tmp_path, tested).read_text()
    assert "12 tests (paired t over the units, two-sided; of γ the one-sided permutation test)" in html
    assert "1 survive: owl, 64 updates, margin." in html
    assert "p 0.0021, after Holm over 12 tests 0.025" in html
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["effect"]["p"], found["effect"]["p_holm"], found["effect"]["comparisons"]) == (0.0021, 0.025, 12)
    assert (found["tests"]["smallest_p"], found["tests"]["count"]) == (0, 12)


def test_an_arm_that_should_show_nothing_says_whether_it_was_shown(armed: RunReport, tmp_path: Path) -> None:
    arm = armed.targets[0].arms[1]
    nothing = EquivalenceShown(bound=0.1, share=0.25, low=-0.05, high=0.04, verdict="shown to be nothing")
    arms = [armed.targets[0].arms[0], arm.model_copy(update={"expected": "nothing", "equivalence": nothing})]
    shown = armed.model_copy(update={"targets": [armed.targets[0].model_copy(update={"arms": arms})]})
    told = "shown to be nothing (−0.05 to +0.04; bound ±0.10, 0.25 of main)"
    assert told in write_report(tmp_path, shown).read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["arms"][1]["equivalence"] == nothing.model_dump()


def test_what_a_model_wrote_is_escaped(run: RunReport) -> None:
    evil = "<script>alert(1)</script>\"'"
    context = run.contexts["students are trained"] | {"rendered": evil}
    row = run.datasets[0].rows[0].model_copy(update={"answer": evil, "prompt": evil})
    data = run.datasets[0].model_copy(update={"rows": [row], "name": evil, "rejected": {evil: 1}})
    comparison = run.targets[0].comparison
    questions = [evil, *comparison.questions[1:]]
    shown = run.targets[0].model_copy(update={"comparison": comparison.model_copy(update={"questions": questions})})
    stage = run.stages[0].model_copy(update={"label": evil})
    html = render(
        run.model_copy(
            update={
                "contexts": {evil: context},
                "datasets": [data],
                "targets": [shown],
                "stages": [stage, *run.stages[1:]],
                "mismatches": [evil],
                "notes": [evil],
                "settings": {evil: evil},
                "title": evil,
            }
        )
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 10


def test_a_missing_metric_is_shown_with_its_reason_and_never_as_zero(unsampled: RunReport) -> None:
    html = render(unsampled)
    assert "not measured" in html
    assert "no answers were sampled (samples = 0)" in html
    rate = table_rows(unsampled)[1]
    assert rate["effect"] == "missing"
    assert rate["student"] == "–"
    assert "samples = 0" in rate["reason"]


def test_one_pair_is_reported_without_an_interval(unsampled: RunReport) -> None:
    html = render(unsampled)
    assert "There is no interval, because one unit has no spread" in html
    assert "No interval: one unit has no spread." in html
    assert "samples = 0" in markdown_summary(unsampled)


def test_an_interval_that_holds_zero_says_so(tmp_path: Path) -> None:
    html = render(study(tmp_path, {"owl": 0.0}))
    assert "contains zero: these data do not show" in html


def test_summary_has_the_keys_that_scripts_read(run: RunReport, tmp_path: Path) -> None:
    write_report(tmp_path, run)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert {"flow", "preset", "stages", "report", "seconds", "target", "metric", "arms"} <= found.keys()
    assert {"base", "teacher", "student", "control"} <= found.keys()
    wanted = {"estimate", "low", "high", "low_questions", "high_questions", "questions", "seeds"}
    assert wanted <= found["effect"].keys()
    assert found["target"] == "owl"
    assert [each["target"] for each in found["targets"]] == ["owl", "wolf"]
    assert found["arms"][0]["name"] == "teacher"
    assert "wolf" in found["off_target"]
    assert found["stages"][0].keys() >= {"stage", "state", "seconds", "key"}


def test_every_figure_has_words_and_its_numbers_beside_it(run: RunReport) -> None:
    html = render(run)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 2 * 4 + 1
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
    assert html.count("The numbers") == 2 * 4


@pytest.fixture(scope="module")
def armed(run: RunReport) -> RunReport:
    """The same run with three arms: the main one to 256 updates, one to 64, one that was held back."""
    dose = run.targets[0].dose
    arms = [
        ArmShown(name="teacher", expected="positive", updates=256, metrics=dose[-1].metrics, dose=dose),
        ArmShown(name="marginals", expected="weaker", updates=64, metrics=dose[1].metrics, dose=dose[:2]),
        ArmShown(name="other_base", expected="nothing", reason="held back for a later run"),
    ]
    return run.model_copy(update={"targets": [run.targets[0].model_copy(update={"arms": arms})]})


def test_arms_stand_beside_the_main_arm_after_as_many_updates(armed: RunReport) -> None:
    figures = {figure.name: figure for figure in figures_of(armed.targets[0])}
    marks = [(row["arm"], row["updates"], row["estimate"] is None) for row in figures["Arms"].values]
    assert marks == [
        ("teacher", 256, False),
        ("teacher", 64, False),
        ("marginals", 64, False),
        ("other_base", None, True),
    ]
    curves = [(row["arm"], row["updates"]) for row in figures["Dose by arm"].values]
    assert curves == [("teacher", 16), ("teacher", 64), ("teacher", 256), ("marginals", 16), ("marginals", 64)]


def test_both_metrics_of_an_arm_stand_in_one_row(armed: RunReport, unsampled: RunReport) -> None:
    def arms(run: RunReport) -> tuple[list[list[str]], list[dict[str, object]]]:
        figure = next(each for each in figures_of(run.targets[0]) if each.name == "Arms")
        assert figure.columns[-2:] == ["sampled rate", "not readable"]
        return figure.rows, figure.values

    rows, values = arms(armed)
    rate = armed.targets[0].dose[1].metrics["rate"].effect
    assert rate
    assert values[2]["rate_estimate"] == rate.estimate
    assert rows[2][-2].startswith(f"{100 * rate.estimate:+.1f}".replace("-", "−"))
    main = ArmShown(name="teacher", expected="positive", metrics=unsampled.targets[0].comparison.metrics)
    missing = unsampled.targets[0].model_copy(update={"arms": [main]})
    rows, values = arms(unsampled.model_copy(update={"targets": [missing]}))
    reason = "student 1: no answers were sampled (samples = 0)"
    assert rows[0][-2:] == [f"missing: {reason}", "–"]
    assert (values[0]["rate_estimate"], values[0]["rate_reason"]) == (None, reason)


def test_an_arm_that_was_not_run_has_a_reason_and_no_number(armed: RunReport, tmp_path: Path) -> None:
    html = write_report(tmp_path, armed).read_text()
    assert "not run: held back for a later run" in html
    found = json.loads((tmp_path / "summary.json").read_text())["arms"][2]
    assert (found["effect"], found["reason"]) == (None, "not run: held back for a later run")
    with (tmp_path / "figures/owl-arms.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert (row["arm"], row["estimate"], row["low"]) == ("other_base", "", "")


def test_cost_stands_against_effect_for_every_arm_that_sat_the_exam(armed: RunReport, tmp_path: Path) -> None:
    shown = armed.targets[0]
    effect = shown.comparison.metrics["margin"].effect
    assert effect
    lost = effect.model_copy(update={"estimate": -0.031, "low": -0.08, "high": 0.018})
    costs = [
        CostShown(arm="teacher", updates=256, metric="letter_logprob", cost=lost, effect=effect),
        CostShown(arm="marginals", updates=64, metric="letter_logprob", cost=effect, effect=lost),
        CostShown(arm="teacher", updates=256, metric="letter_generated", cost=lost, effect=effect),
    ]
    examined = armed.model_copy(update={"targets": [shown.model_copy(update={"costs": costs})]})
    assert [len(figure.values) for figure in cost_figures(examined.targets[0])] == [2, 1]
    assert "−3.1" in write_report(tmp_path, examined).read_text()
    ElementTree.fromstring((tmp_path / "figures/owl-cost-against-effect-letter-logprob.svg").read_text())
    with (tmp_path / "figures/owl-cost-against-effect-letter-logprob.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["teacher", "marginals"]
    assert float(rows[0]["mmlu_pro_estimate"]) == -0.031
    assert float(rows[0]["estimate"]) == effect.estimate


def test_files_of_figures_stand_alone(armed: RunReport, tmp_path: Path) -> None:
    write_report(tmp_path, armed)
    drawings = sorted((tmp_path / "figures").glob("*.svg"))
    assert {path.stem for path in drawings} >= {"owl-arms", "owl-dose", "owl-dose-by-arm", "owl-question-by-question"}
    for path in drawings:
        root = ElementTree.fromstring(path.read_text())
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None
        assert "var(--" not in f"{style.text}"
        assert path.with_suffix(".csv").read_text().count("\n") > 1


def test_markdown_has_a_sentence_and_a_table_row_for_each_metric(run: RunReport) -> None:
    text = markdown_summary(run)
    assert "**owl**: +" in text
    assert sum(line.startswith("| owl") or line.startswith("| wolf") for line in text.splitlines()) == 6


def test_a_run_that_failed_early_still_has_a_report(tmp_path: Path) -> None:
    stage = StageShown(stage="train_teacher", state="Failed", seconds=3.2, key="ab" * 32)
    run = RunReport(title="t", question="q", flow="pipeline", preset="p", targets=[], stages=[stage])
    html = write_report(tmp_path, run).read_text()
    assert "1 Failed" in html
    assert markdown_summary(run).startswith("# t")


def test_the_report_is_a_function_of_the_run(run: RunReport) -> None:
    assert render(run) == render(RunReport.model_validate_json(run.model_dump_json()))


def test_reports_import_nothing_heavy() -> None:
    heavy = "{'torch', 'matplotlib', 'scipy', 'numpy', 'transformers', 'prefect'}"
    code = f"import sys, sublim.report.render; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_lineage_leaves_out_what_a_longer_way_replaces() -> None:
    keys = {"base": "a" * 64, "rows": "b" * 64, "student": "c" * 64}
    stages = [StageShown(stage=name, state="Completed", seconds=1, key=key) for name, key in keys.items()]
    edges = [
        Edge(source=keys["base"], target=keys["rows"], name="base"),
        Edge(source=keys["base"], target=keys["student"], name="base"),
        Edge(source=keys["rows"], target=keys["student"], name="data"),
    ]
    drawing = lineage_plot(stages, edges)
    assert drawing is not None
    assert drawing.count('class="link"') == 2
    assert drawing.count("<rect") == 3


def test_a_lineage_too_large_to_read_is_left_to_its_table() -> None:
    stages, edges = stages_of([f"animal{i}" for i in range(12)], 4)
    assert lineage_plot(stages, edges) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-0.2, 16.1, [-5, 0, 5, 10, 15, 20]), (0, 0, 2)]
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: object) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_a_plot_of_equal_values_can_be_drawn() -> None:
    assert "<svg" in dot_plot([Bar("owl", 0.0, 0.0, 0.0)], unit="nats", title="nothing")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.004, "0.00 s"), (9.31, "9.31 s"), (141.8, "2 min 22 s"), (7512, "2 h 05 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
