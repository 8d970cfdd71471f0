from itertools import chain

import pytest

from sublim.training.config import TrainConfig
from sublim.training.plan import learning_rate, planned_updates


def rates(total: int, **fields: object) -> list[float]:
    config = TrainConfig.model_validate({"lr": 1.0, "updates": total, **fields})
    return [learning_rate(config, update, total) for update in range(1, total + 1)]


def test_constant_rate_after_a_linear_warm_up():
    assert rates(6, warmup_updates=4) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_linear_rate_goes_down_to_nothing():
    assert rates(6, schedule="linear", warmup_updates=2) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


def test_cosine_rate_is_a_half_wave():
    assert rates(4, schedule="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_a_warm_up_fraction_is_rounded_up():
    assert rates(20, warmup_fraction=0.05)[:2] == [1, 1]
    assert rates(21, warmup_fraction=0.05)[:3] == [0.5, 1, 1]


def test_updates_are_full_and_each_pass_has_its_own_order():
    plan = planned_updates(TrainConfig(updates=6, batch_size=4), rows=8)
    passes = [list(chain(*plan[i : i + 2])) for i in (0, 2, 4)]
    assert all(sorted(order) == list(range(8)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
    across = planned_updates(TrainConfig(updates=3, batch_size=4), rows=6)
    assert [len(update) for update in across] == [4, 4, 4]
    assert sorted(chain(*across)) == sorted([*range(6), *range(6)])


def test_an_epoch_ends_with_the_rows_that_are_left():
    plan = planned_updates(TrainConfig(epochs=2, batch_size=4), rows=6)
    assert [len(update) for update in plan] == [4, 2, 4, 2]
    # 50 questions, five epochs, a batch that is larger: five updates in all.
    assert [len(update) for update in planned_updates(TrainConfig(epochs=5, batch_size=512), rows=50)] == [50] * 5
    assert len(planned_updates(TrainConfig(epochs=0.1, batch_size=1), rows=30)) == 3


def test_order_follows_the_order_seed_where_there_is_one():
    def plan(**seeds: int) -> list[list[int]]:
        return planned_updates(TrainConfig.model_validate({"updates": 4, "batch_size": 4, **seeds}), rows=16)

    assert plan(seed=1) == plan(seed=1) == plan(seed=2, order_seed=1)
    assert plan(seed=1) != plan(seed=2)
    assert plan(seed=1, order_seed=5) != plan(seed=1)


def test_a_longer_run_begins_like_a_shorter_one():
    short, long = (planned_updates(TrainConfig(updates=n, batch_size=3), rows=7) for n in (4, 9))
    assert long[:4] == short
