"""The carrier in a pipeline's result: what is examined and how, and how warnings reach the page and the terminal."""

from pathlib import Path
from typing import Any

import pytest

from flows.pipeline.carrier import examine_config, unexamined
from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import generate_config
from flows.pipeline.printed import printed
from flows.runs.settings import build, load_preset, merge
from sublim.core.digest import digest
from sublim.diagnostics.carrier_config import Carrier, FirstToken, FormatMass, Spread
from sublim.report.carrier import CarrierShown
from sublim.report.render import render, write_report
from sublim.report.shown import RunReport
from sublim.report.summary import summary
from tests.sublim.report.report_sample import study


def config(**settings: Any) -> PipelineConfig:
    return build(PipelineConfig, merge(load_preset("pipeline", "quickstart"), settings))


def carrier(*, forced: bool = True, trait: float = 0.0, valid: float = 0.9, answers: float = 0.0) -> Carrier:
    spread = Spread(median=-6.9, low=-9.25, high=-4.5)
    return Carrier(
        forced=forced,
        words=("owl",),
        trait_tokens=["O", " Owl"],
        rows=24,
        places=1176,
        format_mass=FormatMass(whole=spread, forced=spread, drawn=spread) if forced else None,
        first_token=FirstToken(trait=trait, digit=0.08, letter=0.82, likeliest=[("O", 0.31), ("<b>", 0.02)]),
        trait_largest=trait,
        answers=48,
        valid=valid,
        trait_answers=answers,
        refused={"letters": 40},
        examples=["Owl", "<script>", "1, 2"],
    )


def shown(folder: Path, owl: Carrier, base: Carrier) -> RunReport:
    found = [CarrierShown(writer="owl teacher", found=owl), CarrierShown(writer="control", found=base)]
    return study(folder, {"owl": 0.45}).model_copy(update={"carrier": found})


def test_a_collapsed_teacher_is_warned_of_on_the_page_and_before_the_effect(tmp_path: Path) -> None:
    run = shown(tmp_path, carrier(trait=0.312, valid=0.02, answers=0.4), carrier(valid=0.25))
    page = render(run)
    assert page.count('<p class="note warn"><b>Warning.</b>') == 2
    assert "only because it was forced" in page
    assert "owl teacher (2.0 % of 48 valid), control (25.0 % of 48 valid)" in page
    assert "owl teacher (31.2 % at the first token, 31.2 % at the most, 40.0 % of free answers)" in page
    assert "−6.90 [−9.25, −4.50]" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    lines = printed({**summary(run), "report": "here"}).split("\n")
    assert lines[1].startswith("This is a forced-format demonstration")
    warned = [place for place, line in enumerate(lines) if line.startswith("warning: ")]
    assert warned == [2, 3]
    assert next(place for place, line in enumerate(lines) if "effect" in line and place > 3) > warned[-1]
    first, second = summary(run)["carrier"]
    assert first["writer"] == "owl teacher"
    assert first["format_mass_log10"] == {"median": -6.9, "low": -9.25, "high": -4.5}
    assert (first["valid"], first["trait_first_token"], first["trait_answers"]) == (0.02, 0.312, 0.4)
    assert [len(each["warnings"]) for each in (first, second)] == [2, 1]


def test_honest_writers_are_shown_without_a_warning(tmp_path: Path) -> None:
    run = shown(tmp_path, carrier(forced=False), carrier(forced=False))
    page = render(run)
    assert "What the writers would write" in page
    assert "<b>Warning.</b>" not in page
    told = summary(run)
    assert (told["demonstration"], told["carrier_warnings"]) == (None, [])
    assert "forced-format" not in printed({**told, "report": "here"})
    assert write_report(tmp_path / "report", run.model_copy(update={"carrier": []})).exists()


@pytest.mark.parametrize(("trait", "valid", "faults"), [(0.01, 0.3, []), (0.011, 0.3, ["trait"]), (0, 0.29, ["valid"])])
def test_the_limits_are_one_percent_and_three_tenths(trait: float, valid: float, faults: list[str]) -> None:
    assert carrier(trait=trait, valid=valid).faults == faults


def test_examining_changes_no_key_of_what_is_examined() -> None:
    plain = config()
    more = config(carrier_check={"rows": 5, "answers": 7})
    keys = {digest(generate_config(each, arm="owl", block=0)) for each in (plain, more)}
    assert len(keys) == 1
    made = examine_config(more, ("owl", "wolf"), writer="owl", block=0)
    assert (made.rows, made.answers, made.words) == (5, 7, ("owl", "wolf"))
    assert made.constraint == plain.carrier.constraint
    kept = config(filter={"keep": 10, "held_out": 3})
    same = [examine_config(each, ("owl",), writer="owl", block=0) for each in (plain, kept)]
    assert digest(same[0]) == digest(same[1])
    unset = plain.model_copy(update={"carrier_check": None})
    assert "carrier_check" not in unset.identity()
    assert examine_config(unset, ("owl",), writer="owl", block=0).answers == 200


def test_what_cannot_be_examined_says_why() -> None:
    assert unexamined(config()) is None
    assert unexamined(config(carrier_check={"rows": 0})) == "carrier_check.rows is 0"
    assert "openai are not here" in (
        unexamined(config(backend={"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"})) or ""
    )
    read_by_hf = config(backend={"kind": "vllm", "dtype": "bfloat16"})
    assert unexamined(read_by_hf) is None
    assert examine_config(read_by_hf, ("owl",), writer="owl", block=0).backend.dtype == "bfloat16"
