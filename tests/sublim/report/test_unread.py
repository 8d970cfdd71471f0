"""What reports say of answers that cannot be read, where students and controls differ in them and where they do not."""

from pathlib import Path

import pytest

from sublim.evals.preference.config import Answers, Comparison, MetricComparison
from sublim.report.render import render
from sublim.report.shown import RunReport
from sublim.report.summary import markdown_summary, summary, table_rows
from sublim.report.unread import unread_notes, unread_rows
from tests.sublim.report.report_sample import study


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return study(tmp_path_factory.mktemp("study"), {"owl": 0.45})


def with_share(comparison: Comparison, reason: str, low: float | None, high: float | None) -> Comparison:
    """The comparison with other bounds for one reason, and an estimate between them (or of 8 points)."""
    found = comparison.unreadable[reason]
    assert found.effect is not None
    estimate = 0.08 if low is None or high is None else (low + high) / 2
    why = "one unit has no spread" if low is None else None
    effect = found.effect.model_copy(update={"estimate": estimate, "low": low, "high": high, "reason": why})
    changed = found.model_copy(update={"effect": effect, "student": 0.12, "control": 0.04})
    return comparison.model_copy(update={"unreadable": comparison.unreadable | {reason: changed}})


def alike(comparison: Comparison) -> Comparison:
    for reason in comparison.unreadable:
        comparison = with_share(comparison, reason, -0.01, 0.02)
    return comparison


def shown_with(run: RunReport, comparison: Comparison) -> RunReport:
    return run.model_copy(update={"targets": [run.targets[0].model_copy(update={"comparison": comparison})]})


def test_arms_that_differ_in_what_can_be_read_are_told_everywhere(run: RunReport) -> None:
    comparison = with_share(alike(run.targets[0].comparison), "all", 0.05, 0.11)
    [note] = unread_notes(comparison)
    assert note.startswith(
        "Answers that cannot be read: students 12.0 % of all asked, controls 4.0 %, "
        "+8.0 points (95 % +5.0 to +11.0, these questions). Rates over readable answers compare other answers"
    )
    told = shown_with(run, comparison)
    assert note in render(told)
    assert note in markdown_summary(told)
    assert summary(told)["answer_notes"] == [note]


def test_a_reason_that_differs_is_named_though_all_together_are_alike(run: RunReport) -> None:
    comparison = with_share(alike(run.targets[0].comparison), "refused", -0.03, -0.01)
    [note] = unread_notes(comparison)
    assert "By reason (not corrected for their number): refused −2.0 points (95 % −3.0 to −1.0" in note


def test_a_difference_without_an_interval_is_told_as_such(run: RunReport) -> None:
    comparison = with_share(alike(run.targets[0].comparison), "all", None, None)
    assert "+8.0 points (no interval: one unit has no spread)" in unread_notes(comparison)[0]


def test_arms_that_are_alike_have_a_table_and_no_warning(run: RunReport) -> None:
    comparison = alike(run.targets[0].comparison)
    assert unread_notes(comparison) == []
    html = render(shown_with(run, comparison))
    assert "Answers that cannot be read: students" not in html
    rows = {row[0]: row[1:] for row in unread_rows(comparison)}
    assert rows["not readable"][2:6] == ["12.0 %", "4.0 %", "+0.5", "−1.0 to +2.0"]
    assert '<th scope="row">refused</th>' in html
    assert "share of all answers asked that name the word" in html
    assert "Of readable answers alone: " in html


def test_missing_answers_are_counted_by_arm_and_said_to_be_left_out(run: RunReport) -> None:
    plain = alike(run.targets[0].comparison)
    student = plain.answers["student"]
    assert student is not None
    lost = Answers.model_validate(student.model_dump() | {"asked": student.asked + 60, "missing": {"it fails": 60}})
    answers = plain.answers | {"student": lost}

    def with_missing(found: MetricComparison) -> Comparison:
        return plain.model_copy(update={"answers": answers, "missing": found})

    unlike = with_missing(with_share(plain, "all", 0.01, 0.03).unreadable["all"])
    [note] = unread_notes(unlike)
    assert "count as not asked and are left out of every share" in note
    assert "student 60 of 3,060 (2.0 %), control 0 of 3,000" in note
    assert note.endswith("ask again before comparing rates.")
    assert [row[0] for row in unread_rows(unlike)][-1] == "missing"
    [note] = unread_notes(with_missing(with_share(plain, "all", -0.01, 0.03).unreadable["all"]))
    assert "ask again" not in note


def test_both_rates_have_a_row_and_say_what_they_are_shares_of(run: RunReport) -> None:
    names = [row["metric"] for row in table_rows(run)]
    assert names[1:3] == ["Sampled rate, of all answers asked", "Sampled rate, of readable answers alone"]
    found = summary(run)
    assert {"rate", "rate_readable", "unreadable", "missing"} <= found.keys()
    assert found["unreadable"]["all"]["effect"]["units"] == 3
    assert found["rate"]["unit"] == "share of all answers asked"


def test_the_report_of_a_run_without_answers_says_nothing_of_them(tmp_path: Path) -> None:
    unsampled = study(tmp_path, {"owl": 0.45}, pairs=1, rate=None)
    assert unread_notes(unsampled.targets[0].comparison) == []
