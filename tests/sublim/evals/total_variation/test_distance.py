"""Total variation: hand-computed distances, a floor for what sampling alone gives, and refusals."""

import math
from pathlib import Path

import numpy as np
import pytest

from sublim.core.errors import UserError
from sublim.evals.effect_config import CompareConfig
from sublim.evals.total_variation.compare import compare_shift
from sublim.evals.total_variation.config import CompareShiftConfig, ShiftComparisons, ShiftConfig, Shifts
from sublim.evals.total_variation.distance import shift
from sublim.files.jsonl import write_jsonl

WORDS = ("owl", "cat")


def asked(folder: Path, probabilities: list[list[float]], answers: list[list[str]] | None = None) -> Path:
    """An `ask` payload with the probability of each word [question][word] and answers [question][sample]."""
    folder.mkdir()
    write_jsonl(folder / "questions.jsonl", ({"question": i, "text": f"Q{i}"} for i in range(len(probabilities))))
    write_jsonl(
        folder / "logprobs.jsonl",
        (
            {"question": i, "word": word, "logprob": math.log(p) if p else -math.inf, "tokens": 1}
            for i, row in enumerate(probabilities)
            for word, p in zip(WORDS, row, strict=True)
        ),
    )
    rows = (
        {"question": i, "sample": j, "text": text, "finish": "stop"}
        for i, row in enumerate(answers or [])
        for j, text in enumerate(row)
    )
    write_jsonl(folder / "answers.jsonl", rows)
    return folder


def compared(folder: Path, one: Path, other: Path) -> Shifts:
    out = folder / f"{one.name}-{other.name}"
    out.mkdir()
    shift(out, ShiftConfig(words=WORDS), scratch=folder, asked=one, reference=other)
    return Shifts.model_validate_json((out / "shift.json").read_bytes())


def test_exact_distances_are_those_computed_by_hand(tmp_path: Path) -> None:
    one = asked(tmp_path / "one", [[0.5, 0.3], [0.1, 0.1]])
    other = asked(tmp_path / "other", [[0.2, 0.3], [0.1, 0.1]])
    found = compared(tmp_path, one, other)
    # With the rest as a class: (|.5-.2| + 0 + |.2-.5|) / 2; within the list: |5/8 - 2/5|.
    assert found.metrics["tv_logprob"].per_question == pytest.approx([0.3, 0.0])
    assert found.metrics["tv_list"].per_question == pytest.approx([5 / 8 - 2 / 5, 0.0])
    assert found.metrics["tv_logprob"].mean == pytest.approx(0.15)
    assert found.metrics["tv_sampled"].reason == "no answers were sampled (samples = 0)"
    assert found.metrics["tv_sampled"].mean is found.floor is found.p is None


def test_a_word_without_a_finite_log_prob_is_missing_with_its_reason(tmp_path: Path) -> None:
    one = asked(tmp_path / "one", [[0.5, 0.0]])
    found = compared(tmp_path, one, asked(tmp_path / "other", [[0.2, 0.3]]))
    assert found.metrics["tv_logprob"].mean is None
    assert "not finite" in (found.metrics["tv_logprob"].reason or "")


def test_unreadable_answers_are_a_class_of_their_own(tmp_path: Path) -> None:
    one = asked(tmp_path / "one", [[0.5, 0.3]], [["Owl", "Owl", "", "A dragon"]])
    other = asked(tmp_path / "other", [[0.5, 0.3]], [["Owl", "Cat", "A dragon", "A unicorn"]])
    # owl 2/4 and 1/4, cat 0 and 1/4, other 1/4 and 2/4, unreadable 1/4 and 0.
    assert compared(tmp_path, one, other).metrics["tv_sampled"].per_question == pytest.approx([0.5])


def test_answers_drawn_alike_lie_at_the_floor_and_shifted_ones_above(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def drawn(p: float) -> list[list[str]]:
        return [["Owl" if rng.random() < p else "Cat" for _ in range(8)] for _ in range(150)]

    flat = [[0.5, 0.3]] * 150
    base = asked(tmp_path / "base", flat, drawn(0.5))
    alike = compared(tmp_path, asked(tmp_path / "alike", flat, drawn(0.5)), base)
    other = compared(tmp_path, asked(tmp_path / "moved", flat, drawn(0.9)), base)
    assert alike.metrics["tv_sampled"].mean == pytest.approx(alike.floor, abs=0.05)
    assert alike.floor is not None
    assert alike.floor > 0.1
    assert alike.p is not None
    assert alike.p > 0.05
    assert other.p == pytest.approx(1 / 201)


def test_other_questions_or_words_are_refused(tmp_path: Path) -> None:
    one, longer = asked(tmp_path / "one", [[0.5, 0.3]]), asked(tmp_path / "longer", [[0.5, 0.3]] * 2)
    with pytest.raises(UserError, match="different questions"):
        compared(tmp_path, one, longer)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="not among the words asked"):
        shift(out, ShiftConfig(words=("owl", "fox")), scratch=tmp_path, asked=one, reference=one)


def test_students_are_set_against_their_controls(tmp_path: Path) -> None:
    base = asked(tmp_path / "base", [[0.5, 0.3], [0.4, 0.4]])
    students = [asked(tmp_path / "s0", [[0.9, 0.1], [0.4, 0.4]]), asked(tmp_path / "s1", [[0.7, 0.1], [0.4, 0.4]])]
    controls = [asked(tmp_path / "c0", [[0.5, 0.3], [0.4, 0.4]]), asked(tmp_path / "c1", [[0.6, 0.2], [0.4, 0.4]])]
    out = tmp_path / "out"
    out.mkdir()
    config = CompareShiftConfig(words=WORDS, compare=CompareConfig(draws=200))
    compare_shift(out, config, scratch=tmp_path, students=students, controls=controls, base=base)
    found = ShiftComparisons.model_validate_json((out / "shift_comparison.json").read_bytes()).metrics
    # First question, from the base's (.5, .3, .2): students .4 and .2, controls 0 and .1.
    effect = found["tv_logprob"].effect
    assert effect is not None
    assert effect.per_pair == pytest.approx([0.2, 0.05])
    assert effect.per_question == pytest.approx([0.25, 0.0])
    assert (found["tv_logprob"].student, found["tv_logprob"].control) == pytest.approx((0.15, 0.025))
    # Students from their own controls: .4 and .1 on the first question.
    assert found["tv_logprob"].between == pytest.approx(0.125)
    assert found["tv_sampled"].effect is None
    assert found["tv_sampled"].reason == "no answers were sampled (samples = 0)"
