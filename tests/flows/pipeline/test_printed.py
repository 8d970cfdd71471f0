"""What a pipeline run prints of its rates."""

from pathlib import Path

from flows.pipeline.printed import printed
from sublim.report.summary import summary
from tests.sublim.report.report_sample import study


def test_both_rates_and_what_cannot_be_read_are_printed(tmp_path: Path) -> None:
    outcome = summary(study(tmp_path, {"owl": 0.45}))
    outcome["targets"][0]["answer_notes"] = ["Answers that cannot be read: many."]
    lines = printed(outcome).splitlines()
    [rate] = [line for line in lines if line.startswith("  rate ")]
    [readable] = [line for line in lines if line.startswith("  rate_readable ")]
    assert "points of all answers asked  (base " in rate
    assert "points of readable answers alone  (base " in readable
    assert "  note: Answers that cannot be read: many." in lines
