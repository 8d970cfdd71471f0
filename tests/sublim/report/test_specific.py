"""Specific effects in the report: the opening sentence, the heat maps, placebo ranks, and what is said without them."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sublim.evals.effect_config import CompareConfig
from sublim.evals.effects import units_of
from sublim.evals.specificity.compare import about
from sublim.evals.specificity.config import CompareTargetsConfig, Specificity
from sublim.evals.specificity.tables import Values, table_of
from sublim.report.render import render, write_report
from sublim.report.shown import RunReport, SpecificShown
from sublim.report.specific import lead, lead_more, specific_figures, target_lines
from sublim.report.summary import markdown_summary, summary
from tests.sublim.report.report_sample import WORDS, study


def beside(targets: tuple[str, ...], own: float, words: list[str] = WORDS, blocks: int = 1) -> Specificity:
    """Students of every target that move their own word by `own`, and every teacher's move wolf by 1."""
    rng = np.random.default_rng(3)
    students = rng.normal(0, 0.05, (len(targets), 3, len(words), 10))
    students[:, :, 0] += 1
    for i, target in enumerate(targets):
        students[i, :, words.index(target)] += own
    units = units_of(3, 3, range(3) if blocks > 1 else ())
    config = CompareTargetsConfig(targets=targets, words=tuple(words), compare=CompareConfig(draws=200))
    table = table_of(Values(students, np.zeros_like(students)), units, config)
    return Specificity(
        targets=targets,
        words=tuple(words),
        unit=units.kind,
        about_units=about(units, len(targets)),
        leads="these_questions",
        metrics={"margin": table},
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return study(tmp_path_factory.mktemp("plain"), {"owl": 0.45})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return study(tmp_path_factory.mktemp("both"), {"owl": 0.45, "wolf": 0.3})


def with_table(run: RunReport, found: Specificity) -> RunReport:
    own = [shown.target for shown in run.targets]
    against = tuple(target for target in found.targets if target not in own)
    return run.model_copy(update={"specific": [SpecificShown(updates=64, against=against, found=found)]})


def test_one_target_opens_with_its_specific_effect(plain: RunReport) -> None:
    run = with_table(plain, beside(("owl", "panda"), 0.6))
    assert lead(run).startswith("Specific to owl, against students of a panda teacher: +0.6")
    assert lead_more(run).startswith("The interval excludes zero. Of the total effect of +0.6")
    assert "One teacher for each target" in lead_more(run)
    found = beside(("owl", "panda"), 0.6)
    table = found.metrics["margin"]
    corrected = table.targets["owl"].specific.model_copy(update={"p": 0.02, "p_holm": 0.16, "comparisons": 8})
    table.targets["owl"] = table.targets["owl"].model_copy(update={"specific": corrected})
    more = lead_more(with_table(plain, found))
    assert more.startswith("The interval excludes zero, but the effect does not survive correction for all 8 tests")
    assert "(p 0.16)" in more
    null = with_table(plain, beside(("owl", "panda"), 0.0))
    assert "The interval contains zero: a preference of this teacher's own is not shown." in lead_more(null)
    page = render(run)
    assert page.index("Specific to owl") < page.index("Is it specific?") < page.index("The effect on <em>owl</em>")
    assert lead(run) in markdown_summary(run)


def test_several_targets_open_with_gamma_and_its_p(both: RunReport) -> None:
    run = with_table(both, beside(("owl", "wolf"), 0.6, blocks=3))
    assert lead(run).startswith("Specific to the own target, γ over owl and wolf: +0.59 nats")
    assert "one-sided permutation p 0.125 (exact, smallest possible 0.125)" in lead(run)
    assert "3 blocks" in lead_more(run)
    assert "on the word of 3; a headline wants 5" in lead_more(run)


def test_the_placebo_rank_is_shown_with_and_without_a_specific_effect(plain: RunReport) -> None:
    (rank,) = target_lines(plain, plain.targets[0])
    assert rank == "Placebo rank (1 = moved furthest): 1 of 12 words by total effect."
    run = with_table(plain, beside(("owl", "panda"), 0.6))
    effects, rank = target_lines(run, run.targets[0])
    assert "Generic: " in effects
    assert "Total: " in effects
    # Every teacher moves wolf further than owl's moves owl, and no one else's.
    assert rank.endswith("2 of 12 words by total effect, 1 of 11 by specific effect.")


def test_heat_maps_hold_every_number_and_outline_the_own_target(plain: RunReport, tmp_path: Path) -> None:
    run = with_table(plain, beside(("owl", "panda"), 0.6))
    by_target, by_word, effects = specific_figures(run)
    for figure, columns in ((by_target, 2), (by_word, 12)):
        cells = [
            found
            for found in ElementTree.fromstring(figure.drawing).iter("{http://www.w3.org/2000/svg}rect")
            if "cell" in (found.get("class") or "")
        ]
        assert len(cells) == 2 * columns
        assert sum("own" in str(found.get("class")).split() for found in cells) == 2
    assert len(effects.rows) == 2 * 3 + 1
    write_report(tmp_path, run)
    with (tmp_path / "figures" / "students-by-all-listed-words.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert float(rows[0]["wolf"]) == pytest.approx(run.specific[0].found.metrics["margin"].moved["owl"]["wolf"])
    whole = with_table(plain, beside(("owl", "panda"), 0.6, words=["owl", "panda"]))
    assert [figure.name for figure in specific_figures(whole)] == ["Students by targets", "Specific, generic and total"]


def test_a_target_alone_says_that_its_effect_is_a_total_one(plain: RunReport) -> None:
    assert "Only one target has a teacher" in lead(plain)
    found = summary(plain)
    assert found["specific"] is found["generic"] is found["gamma"] is None
    assert found["total"]["estimate"] == found["effect"]["estimate"]
    missing = beside(("owl", "panda"), 0.6).model_copy(update={"metrics": {}, "missing": {"margin": "no log-probs"}})
    run = with_table(plain, missing)
    assert lead(run) == "No specific effect could be computed: no log-probs."
    assert summary(run)["specific_reason"] == "no log-probs"
