"""MMLU-Pro's cost: paired over students and questions, hand-computed, and missing where it was not asked."""

from pathlib import Path

import pytest

from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig
from sublim.evals.mmlu_pro.compare import compare_mmlu_pro
from sublim.evals.mmlu_pro.config import MmluProComparison, MmluProScores
from sublim.evals.mmlu_pro.exam import letter_scores
from sublim.stats.intervals import paired_t

CATEGORIES = ["law", "law", "math", "math"]


def scored(folder: Path, right: list[int | None], *, questions: int = 4) -> Path:
    """A payload of score_mmlu_pro; null where no letter could be read."""
    folder.mkdir()
    rows = {number: {"category": CATEGORIES[number % 4], "answer": 1} for number in range(questions)}
    readings = {n: (None, "no letter") if value is None else (value, None) for n, value in enumerate(right)}
    found = letter_scores(rows, readings, 0.95)
    scores = MmluProScores(
        questions=[*range(questions)],
        categories=[row["category"] for row in rows.values()],
        chance=0.1,
        metrics={"letter_logprob": found, "letter_generated": None},
    )
    (folder / "scores.json").write_text(scores.model_dump_json())
    return folder


def compared(
    folder: Path, students: list[Path], controls: list[Path], base: Path, **more: list[Path]
) -> MmluProComparison:
    out = folder / "out"
    out.mkdir()
    compare_mmlu_pro(out, CompareConfig(), scratch=folder, students=students, controls=controls, base=base, **more)
    return MmluProComparison.model_validate_json((out / "mmlu_pro.json").read_bytes())


def test_cost_is_student_minus_control_on_questions_that_all_could_be_read_on(tmp_path: Path) -> None:
    students = [scored(tmp_path / "s0", [1, 0, 1, None]), scored(tmp_path / "s1", [0, 0, 1, 1])]
    controls = [scored(tmp_path / "c0", [1, 1, 1, 1]), scored(tmp_path / "c1", [1, 1, 0, 1])]
    base = scored(tmp_path / "b", [1, 1, 1, 0])
    found = compared(tmp_path, students, controls, base, teacher=[scored(tmp_path / "t", [0, 0, 0, 0])])
    letters = found.metrics["letter_logprob"]
    # Questions 0 to 2: students 2/3 and 1/3, controls 3/3 and 2/3.
    assert (letters.student, letters.control, letters.base, letters.teacher) == pytest.approx((1 / 2, 5 / 6, 1.0, 0.0))
    assert letters.effect is not None
    assert letters.effect.per_pair == pytest.approx([-1 / 3, -1 / 3])
    assert letters.effect.questions == 3
    math = letters.by_category["math"]  # of its two questions one was read by all
    assert (math.estimate, math.questions) == (pytest.approx(0.5), 1)
    law = letters.by_category["law"]
    expected = paired_t([-0.5, -1.0])
    assert (law.estimate, law.low, law.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    against = {each.model: each for each in letters.against_base}
    assert (against["control 1"].gained, against["control 1"].lost) == (1, 0)
    assert (against["student 1"].questions, against["student 1"].lost) == (3, 1)
    assert against["teacher 1"].estimate == pytest.approx(-3 / 4)


def test_letters_that_were_not_generated_are_missing_with_the_reason(tmp_path: Path) -> None:
    models = [scored(tmp_path / name, [1, 0, 1, 1]) for name in "scb"]
    letters = compared(tmp_path, models[:1], models[1:2], models[2]).metrics["letter_generated"]
    assert letters.effect is None
    assert letters.student is None
    assert letters.reason == "no letters were generated"


def test_a_category_that_nobody_could_read_is_missing_with_its_reason(tmp_path: Path) -> None:
    models = [scored(tmp_path / name, [1, 0, None, None]) for name in "scb"]
    found = compared(tmp_path, models[:1], models[1:2], models[2]).metrics["letter_logprob"].by_category
    assert (found["math"].estimate, found["math"].questions) == (None, 0)
    assert found["math"].reason == "no question could be read for every student and control"
    assert (found["law"].estimate, found["law"].low, found["law"].reason) == (0.0, None, "one unit has no spread")


def test_scores_of_other_questions_are_refused(tmp_path: Path) -> None:
    models = [scored(tmp_path / name, [1, 0, 1, 1]) for name in "sc"]
    with pytest.raises(UserError, match="different questions"):
        compared(tmp_path, models[:1], models[1:], scored(tmp_path / "b", [1, 0, 1], questions=3))
