"""The plain report of the flows: complete, escaped, readable offline."""

import re
from pathlib import Path

from sublim.report.page import FigureFile, FlowReport, Table, wordy_columns, write_flow_report

STAGE = {"stage": "train_mnist", "label": "aux=3", "state": "Cached", "seconds": 61.0, "key": "ab", "content": None}


def test_a_flow_report_shows_everything_and_escapes_it(tmp_path: Path) -> None:
    evil = "<script>'1'</script>"
    (tmp_path / "curve.svg").write_text("<svg/>")
    report = FlowReport(
        title=evil,
        question=evil,
        findings=[evil],
        tables=[Table(evil, ["layer", evil], [["1", evil]], evil)],
        figures=[FigureFile(tmp_path / "curve.svg", evil)],
        stages=[STAGE, STAGE | {"state": "Completed", "label": evil}],
        settings={"grid": {"aux": [3, 5]}, "about": evil},
    )
    page = write_flow_report(tmp_path / "made", report).read_text(encoding="utf-8")
    assert "<script" not in page
    # The title stands twice and the caption also as the image's description; the rest once.
    assert page.count("&lt;script&gt;") == 12
    assert "1 Cached, 1 Completed" in page
    assert "1 min 01 s" in page
    assert "grid.aux" in page
    assert re.findall(r'src="([^"]{26})', page) == ["data:image/svg+xml;base64,"]


def test_long_cells_are_text_and_the_others_numbers() -> None:
    rows = [["owl", "0.54 [0.52, 0.56]", "no answer could be read in any run"], ["cat", "–", ""]]
    assert wordy_columns(rows) == {0, 2}
    assert wordy_columns([]) == set()
