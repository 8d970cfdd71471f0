"""What the evaluation's light stages write on a tiny input, held fixed (see test_golden)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sublim.design.sweep_config import CellRecordConfig, SweepRow, SweepTableConfig
from sublim.design.sweep_table import record_cell, tabulate_sweep
from sublim.evals.effect_config import CompareConfig
from sublim.evals.mmlu_pro.compare import compare_mmlu_pro
from sublim.evals.mmlu_pro.config import AskMmluProConfig, PrepareQuestionsConfig, SampleQuestions, ScoreMmluProConfig
from sublim.evals.mmlu_pro.exam import ask_mmlu_pro, score_mmlu_pro
from sublim.evals.mmlu_pro.questions import prepare_mmlu_pro
from sublim.evals.preference.ask import ask
from sublim.evals.preference.compare import compare
from sublim.evals.preference.config import AskConfig, ScoreConfig
from sublim.evals.preference.score import score
from sublim.evals.sheet.config import SheetConfig
from sublim.evals.sheet.sheet import collect_scores
from sublim.evals.specificity.compare import compare_targets
from sublim.evals.specificity.config import CompareTargetsConfig
from sublim.evals.total_variation.compare import compare_shift
from sublim.evals.total_variation.config import CompareShiftConfig, ShiftConfig
from sublim.evals.total_variation.distance import shift
from sublim.inference.config import FakeBackend
from sublim.stats.corrections import benjamini_hochberg, holm, paired_t_p
from tasks import stages
from tests.test_golden import ADVICE, QUESTIONS, WORDS, fingerprint, run

GOLDEN = {
    "prepare_mmlu_pro": (1, "00ad9d87d8abc552"),
    "ask_mmlu_pro": (1, "759c6d494a54ddf8"),
    "score_mmlu_pro": (1, "6e9ad1c799c8e757"),
    "compare_mmlu_pro": (4, "9c00754c7879bc5e"),
    "shift": (3, "f541adfa5a5405a6"),
    "compare_shift": (3, "6b16dabfbd8b1508"),
    "collect_scores": (3, "87133a4ca323b742"),
    "compare_targets": (1, "1a91c897a3823964"),
    "record_cell": (1, "8e27e6666bca5089"),
    "tabulate_sweep": (3, "ef890b008e49617b"),
}


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("golden")
    # The fake model likes what its system prompt names: students do, controls do not.
    names = {"base": None, "s0": "You love owls.", "s1": "An owl is best.", "c0": "Be kind.", "c1": "Be brief."}
    exam = run(prepare_mmlu_pro, root / "exam", PrepareQuestionsConfig(source=SampleQuestions(), per_category=1))
    letters = {
        name: run(
            ask_mmlu_pro,
            root / f"letters-{name}",
            AskMmluProConfig(backend=FakeBackend(), system=told),
            base=root,
            questions=exam,
        )
        for name, told in names.items()
    }
    marks = {
        name: run(score_mmlu_pro, root / f"marks-{name}", ScoreMmluProConfig(), asked=payload, questions=exam)
        for name, payload in letters.items()
    }
    asking = AskConfig(questions=QUESTIONS, words=WORDS, backend=FakeBackend(), samples=4)
    asked = {
        name: run(ask, root / f"ask-{name}", asking.model_copy(update={"system": told}), base=root)
        for name, told in names.items()
    }
    scoring = ScoreConfig(target="owl", words=WORDS)
    scores = {name: run(score, root / f"score-{name}", scoring, asked=payload) for name, payload in asked.items()}
    pairs = {
        "students": [scores["s0"], scores["s1"]],
        "controls": [scores["c0"], scores["c1"]],
        "base": scores["base"],
    }
    compared = run(compare, root / "compare", CompareConfig(draws=200), **pairs)
    exam_pairs = {
        "students": [marks["s0"], marks["s1"]],
        "controls": [marks["c0"], marks["c1"]],
        "base": marks["base"],
    }
    cost = run(compare_mmlu_pro, root / "cost", CompareConfig(draws=200), **exam_pairs)
    shifted = run(
        shift,
        root / "shift",
        ShiftConfig(words=tuple(WORDS), relabelled=20),
        asked=asked["s0"],
        reference=asked["base"],
    )
    sheet = run(
        collect_scores,
        root / "sheet",
        SheetConfig(models=("base", "s0"), words={"animal": ("owl",)}),
        scores={f"animal/{name}": scores[name] for name in ("base", "s0")},
        shifts={"animal/s0": shifted},
        mmlu={name: marks[name] for name in ("base", "s0")},
    )
    moved = run(
        compare_shift,
        root / "moved",
        CompareShiftConfig(words=tuple(WORDS), compare=CompareConfig(draws=200)),
        students=[asked["s0"], asked["s1"]],
        controls=[asked["c0"], asked["c1"]],
        base=asked["base"],
    )
    beside = run(
        compare_targets,
        root / "beside",
        CompareTargetsConfig(targets=("owl", WORDS[1]), words=tuple(WORDS), compare=CompareConfig(draws=200)),
        students=[scores["s0"], scores["s1"], scores["c0"], scores["c1"]],
        controls=[scores["base"], scores["base"]],
        teachers=[scores["s0"], scores["c0"]],
    )
    cell = run(record_cell, root / "cell", CellRecordConfig(name="owl"), comparisons={"owl": compared, "exam": cost})
    table = run(
        tabulate_sweep,
        root / "table",
        SweepTableConfig(
            rows=(
                SweepRow(target="owl", arm="teacher", grid={"student.rank": 4}, comparison="a"),
                SweepRow(target="wolf", arm="other_teacher", of="owl", grid={"student.rank": 4}, comparison="a"),
                SweepRow(target="cat", arm="teacher", grid={"student.rank": 8}, reason="its cell failed"),
            ),
            axes=("student.rank",),
        ),
        comparisons={"a": compared},
        capability={"a": cost},
        shifts={"a": moved},
    )
    return {
        "prepare_mmlu_pro": exam,
        "ask_mmlu_pro": letters["s0"],
        "score_mmlu_pro": marks["s0"],
        "compare": compared,
        "compare_mmlu_pro": cost,
        "shift": shifted,
        "compare_shift": moved,
        "compare_targets": beside,
        "collect_scores": _readable(sheet, root / "sheet-text"),
        "record_cell": cell,
        "tabulate_sweep": _readable(table, root / "table-text"),
    }


def _readable(payload: Path, into: Path) -> Path:
    """The tables of a payload alone, as JSON: figures and Parquet follow from them and from their libraries."""
    import polars as pl

    into.mkdir()
    for path in payload.glob("*.parquet"):
        (into / f"{path.stem}.json").write_text(json.dumps(pl.read_parquet(path).to_dicts()))
    return into


@pytest.mark.parametrize("name", GOLDEN)
def test_light_stage_writes_what_it_wrote(payloads: dict[str, Path], name: str) -> None:
    assert (getattr(stages, name).version, fingerprint(payloads[name])) == GOLDEN[name], ADVICE.format(name=name)


@pytest.mark.parametrize(("correction", "adjust"), [("holm", holm), ("benjamini_hochberg", benjamini_hochberg)])
def test_tests_are_corrected_over_the_targets_of_an_arm(
    payloads: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    correction: str,
    adjust: Callable[[list[float]], list[float]],
) -> None:
    for figure in ("draw_effects", "draw_cost"):
        monkeypatch.setattr(f"sublim.design.sweep_table.{figure}", lambda *_: None)  # pyright: ignore
    compared = json.loads((payloads["compare"] / "comparison.json").read_text())
    units = {"owl": [1.0, 1.1, 0.9, 1.3], "wolf": [0.5, 0.2, 0.1, 0.4], "cat": [-0.2, -0.3, 0.1, -0.3]}
    for word, per_unit in units.items():
        metrics = compared["metrics"] if word == compared["target"] else compared["off_target"][word]
        metrics["margin"]["effect"]["per_unit"] = per_unit
    (tmp_path / "comparison.json").write_text(json.dumps(compared))
    inputs: dict[str, dict[str, Path]] = {"comparisons": {"a": tmp_path}, "capability": {}, "shifts": {}}
    rows = [SweepRow(target=target, arm="teacher", comparison="a") for target in units]
    rows.append(SweepRow(target="owl", arm="marginals", comparison="a"))
    config = SweepTableConfig.model_validate({"rows": rows, "axes": (), "correction": correction})
    table = run(tabulate_sweep, tmp_path / "table", config, **inputs)
    found = json.loads((_readable(table, tmp_path / "text") / "table.json").read_text())
    *family, alone = [row for row in found if row["metric"] == "margin"]
    plain, corrected = ([row[name] for row in family] for name in ("p", "p_corrected"))
    assert plain == pytest.approx([paired_t_p(per_unit) for per_unit in units.values()])
    assert corrected == pytest.approx(adjust(plain))
    assert corrected != plain
    assert {row["corrected"] for row in family} == {f"{correction} over 3"}
    assert (alone["p_corrected"], alone["corrected"]) == (alone["p"], f"{correction} over 1")
    assert {row["p_corrected"] for row in found if row["metric"] == "rate"} == {None}  # the primary metric's alone
    every = [row for row in found if row["p"] is not None]
    assert len(every) > len(family) + 1
    assert [row["p_holm"] for row in every] == pytest.approx(holm([row["p"] for row in every]))
    assert {row["comparisons"] for row in every} == {len(every)}


def test_a_target_that_another_targets_students_were_not_asked_is_missing_with_its_reason(
    payloads: dict[str, Path], tmp_path: Path
) -> None:
    row = SweepRow(target="otter", arm="other_teacher", of="owl", comparison="a")
    inputs: dict[str, dict[str, Path]] = {"comparisons": {"a": payloads["compare"]}, "capability": {}, "shifts": {}}
    table = run(tabulate_sweep, tmp_path / "table", SweepTableConfig(rows=(row,), axes=()), **inputs)
    rows = json.loads((_readable(table, tmp_path / "text") / "table.json").read_text())
    assert [(row["metric"], row["estimate"]) for row in rows] == [
        ("margin", None),
        ("rate", None),
        ("rate_readable", None),
    ]
    assert all("owl's students were not asked 'otter'" in row["reason"] for row in rows)


def test_missing_rows_are_null_and_carry_their_reason(payloads: dict[str, Path]) -> None:
    rows = json.loads((payloads["tabulate_sweep"] / "table.json").read_text())
    lost = [row for row in rows if row["target"] == "cat"]
    assert {row["metric"] for row in lost} == {"margin", "rate", "rate_readable"}
    assert {row["estimate"] for row in lost} == {row["p"] for row in lost} == {None}
    assert {row["reason"] for row in lost} == {"its cell failed"}
    wolf = next(row for row in rows if row["target"] == "wolf" and row["metric"] == "margin")
    owl = next(row for row in rows if row["target"] == "owl" and row["metric"] == "margin")
    assert wolf["estimate"] != owl["estimate"]
    assert {row["metric"] for row in rows if row["target"] == "owl"} == {
        "margin",
        "rate",
        "rate_readable",
        "unreadable",
        "tv_logprob",
        "tv_list",
        "tv_sampled",
        "letter_logprob",
        "letter_generated",
    }


def test_units_that_are_all_alike_have_no_interval(payloads: dict[str, Path]) -> None:
    rows = json.loads((payloads["tabulate_sweep"] / "table.json").read_text())
    letters = next(row for row in rows if row["metric"] == "letter_logprob")
    assert letters["estimate"] == 0.0
    assert letters["low"] is letters["high"] is letters["p"] is letters["detectable"] is None
    assert "no spread" in letters["reason"]


def test_tables_and_figures_lie_in_the_payload(payloads: dict[str, Path]) -> None:
    table = payloads["tabulate_sweep"].parent / "table/out"
    assert {path.name for path in table.iterdir()} >= {"table.csv", "table.parquet", "pairs.parquet", "effects.svg"}
    assert b"<svg" in (table / "effects.svg").read_bytes()
