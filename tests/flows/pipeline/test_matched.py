"""Effects at equal held-out loss: whose lists are read decides, and every listed word has its own."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.pipeline.arms import Contrast
from flows.pipeline.keys import BaseKey, StudentKey, Unit
from flows.pipeline.matched import LossTable, matched_of
from sublim.diagnostics.config import UnseenLoss
from sublim.evals.preference.config import MetricComparison

UPDATES = (8, 16, 32)
UNITS = [Unit(0, 0), Unit(0, 1)]
STILL = (0.0, 0.0, 0.0)
WORDS = {"owl": ((1.0, 2.0, 4.0), STILL), "panda": ((2.0, 4.0, 9.0), STILL), "dog": (STILL, STILL)}
"""Margins of students and controls at each checkpoint."""


def loss(digits: float | None) -> UnseenLoss:
    return UnseenLoss(nats_per_token=0.1, tokens=30, rows=2, digit_nats=digits, digit_tokens=20)


def found(gains: dict[tuple[str, str], Sequence[float | None]], updates: Sequence[int] = UPDATES) -> list[Any]:
    """What is told of two pairs whose digits' gains are given by arm and by the lists' writer."""
    losses: LossTable = {BaseKey(): {"owl": loss(2.0), "control": loss(2.0)}}
    for arm in ("owl", "control"):
        for unit in UNITS:
            for place, update in enumerate(updates):
                own = {rows: gains[arm, rows][place] for rows in ("owl", "control")}
                told = {rows: loss(None if gain is None else 2.0 - gain) for rows, gain in own.items()}
                losses[StudentKey(arm, unit, update)] = told

    def margins(word: str, place: int) -> MetricComparison:
        student, control = (side[place] for side in WORDS[word])
        known = {"unit": "nats", "base": 0.0, "teacher": 9.0, "student": student, "control": control, "effect": None}
        return MetricComparison.model_validate({**known, "students": [student] * 2, "controls": [control] * 2})

    def at(_: str, update: int) -> Any:
        place = list(updates).index(update)
        others = {word: {"margin": margins(word, place)} for word in ("panda", "dog")}
        return SimpleNamespace(metrics={"margin": margins("owl", place)}, off_target=others)

    study = SimpleNamespace(
        main=lambda _: Contrast("owl", None, "owl", "control", tuple(updates)),
        trained=SimpleNamespace(units=UNITS),
        config=SimpleNamespace(blocks=(0,)),
    )
    return matched_of(cast(Any, study), cast(Any, SimpleNamespace(main=at)), "owl", losses)


GAINS = {
    ("owl", "owl"): (0.1, 0.2, 0.4),
    ("owl", "control"): (0.05, 0.1, 0.2),
    ("control", "owl"): (0.1, 0.2, 0.3),
    ("control", "control"): (0.05, 0.2, 0.4),
}


def test_every_word_is_compared_on_own_and_on_the_same_lists_and_ranked() -> None:
    rows = {(each.rows_of, each.word): each for each in found(GAINS)}
    assert len(rows) == 3 * 3
    # Both gained .4 on their own lists, .3 of the teacher's and .2 of the base's: the student had 4, 3 and 4 there.
    assert rows["own", "owl"].estimate == pytest.approx(4.0)
    assert rows["owl", "owl"].estimate == pytest.approx(3.0)
    assert rows["control", "owl"].estimate == pytest.approx(4.0)
    assert (rows["control", "owl"].student_gain, rows["control", "owl"].control_gain) == pytest.approx((0.2, 0.4))
    assert [rows[lists, "panda"].rank for lists in ("own", "owl", "control")] == [1, 1, 1]  # it moved more than owl
    assert [rows["own", word].rank for word in ("owl", "dog")] == [2, 3]
    assert rows["own", "owl"].low == rows["own", "owl"].estimate  # two equal pairs


def test_fewer_than_three_checkpoints_and_missing_losses_are_refused_with_their_reason() -> None:
    [row] = found(GAINS, updates=(8, 16))
    assert (row.estimate, row.word) == (None, None)
    assert row.reason == "too few checkpoints (2): 3 or more are needed (evaluation.updates)"
    lost = found({**GAINS, ("control", "owl"): (0.1, None, 0.3)})
    rows = {(each.rows_of, each.word): each for each in lost}
    assert rows["own", "owl"].estimate == pytest.approx(4.0)
    assert (rows["owl", "owl"].estimate, rows["owl", "owl"].rank) == (None, None)
    reason = "2 of 2 pairs: 2 measured checkpoints of 3 or more that are needed (evaluation.updates)"
    assert rows["owl", "owl"].reason == reason
