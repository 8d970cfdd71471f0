from typing import Any

import pytest
from pydantic import ValidationError

from sublim.core.errors import UserError
from sublim.search.config import Choice, FloatRange, IntRange, Multiple, Range
from sublim.search.space import check_space, params_of, student_with
from sublim.training.config import FullWeights, Lora, TrainConfig

STUDENT = TrainConfig(method=Lora(rank=8, alpha=16), lr=2e-4, updates=8)
SPACE: dict[str, Range] = {
    "method.alpha": Multiple(of="method.rank", values=(1.0, 1.5, 2.0)),
    "lr": FloatRange(low=1e-5, high=3e-4, log=True),
    "method.rank": IntRange(low=8, high=64, step=8),
    "schedule": Choice(values=("constant", "linear")),
}
PARAMS = {"lr": 1e-4, "method.rank": 24, "method.alpha/method.rank": 1.5, "schedule": "linear"}


def test_alpha_follows_the_rank_that_was_drawn_whatever_the_order_of_the_space() -> None:
    student = student_with(STUDENT, SPACE, PARAMS)
    assert student.method == Lora(rank=24, alpha=36.0)
    assert (student.lr, student.schedule, student.updates) == (1e-4, "linear", 8)


def test_default_is_found_in_the_space_or_told_to_lie_outside() -> None:
    params = params_of(STUDENT, SPACE)
    assert params == {"method.alpha/method.rank": 2.0, "lr": 2e-4, "method.rank": 8, "schedule": "constant"}
    assert student_with(STUDENT, SPACE, params) == STUDENT
    for outside in ({"lr": 1e-3}, {"method": Lora(rank=12, alpha=12)}, {"method": Lora(rank=8, alpha=8 * 1.7)}):
        assert params_of(STUDENT.model_copy(update=outside), SPACE) is None


@pytest.mark.parametrize(
    ("path", "searched", "said"),
    [
        ("method.dropout", FloatRange(low=0.0, high=1.0), "less than 1"),
        ("method.dropout", FloatRange(low=-0.1, high=0.1), "greater than or equal to 0"),
        ("method.rank", FloatRange(low=8, high=64), "valid integer"),
        ("method.rank", IntRange(low=0, high=8), "greater than or equal to 1"),
        ("schedule", Choice(values=("constant", "staircase")), "staircase"),
        ("method.alpha", Multiple(of="schedule", values=(2.0,)), "not a number"),
        ("method.alpha", Multiple(of="method.rank", values=(0.0,)), "greater than 0"),
        ("lr", FloatRange(low=0.0, high=1e-3), "greater than 0"),
    ],
)
def test_bounds_that_the_field_does_not_accept_are_refused(path: str, searched: Range, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_space(STUDENT, {path: searched})


def test_field_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match=r"has no method\.rank: leave it out"):
        check_space(STUDENT.model_copy(update={"method": FullWeights()}), {"method.rank": IntRange(low=8, high=16)})
    with pytest.raises(UserError, match="empty"):
        check_space(STUDENT, {})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (FloatRange, {"low": 2.0, "high": 1.0}),
        (FloatRange, {"low": 0.0, "high": 1.0, "log": True}),
        (FloatRange, {"low": 0.0, "high": float("nan")}),
        (IntRange, {"low": 8, "high": 60, "step": 8}),
        (Choice, {"values": ("one",)}),
    ],
)
def test_ranges_that_make_no_sense_are_refused(kind: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(**fields)


def test_parameters_that_contradict_each_other_are_a_users_error() -> None:
    space: dict[str, Range] = {"warmup_fraction": FloatRange(low=0.0, high=0.1)}
    student = STUDENT.model_copy(update={"warmup_updates": 2})
    with pytest.raises(UserError, match="not both"):
        check_space(student, space)
