"""The plan of a training run: the rows of every update, and its learning rate."""

import math
from collections.abc import Iterator
from itertools import count, islice

import numpy as np

from sublim.training.config import TrainConfig


def planned_updates(config: TrainConfig, rows: int) -> list[list[int]]:
    """For every update the indices of its rows, from 0 to `rows` - 1. Each pass over the rows has its own order.

    With `updates`, every update has `batch_size` rows, and a pass may end within an update. With `epochs`, every pass
    ends with an update, which may have fewer rows.
    """
    seed = config.seed if config.order_seed is None else config.order_seed
    size = config.batch_size
    passes = (np.random.default_rng([seed, number]).permutation(rows).tolist() for number in count())
    if config.updates is not None:
        stream: Iterator[int] = (row for order in passes for row in order)
        return [list(islice(stream, size)) for _ in range(config.updates)]
    assert config.epochs is not None
    # Fractions such as 0.1 are not exact in binary: 0.1 * 30 must be 3 updates and not 4.
    total = math.ceil(round(config.epochs * math.ceil(rows / size), 6))
    in_passes = (order[start : start + size] for order in passes for start in range(0, rows, size))
    return list(islice(in_passes, total))


def learning_rate(config: TrainConfig, update: int, total: int) -> float:
    """The learning rate of `update`, counted from 1 to `total`. Falling schedules reach 0 one update after the last."""
    warmup = config.warmup_updates or math.ceil(round((config.warmup_fraction or 0) * total, 6))
    if update <= warmup:
        return config.lr * update / warmup
    gone = (update - 1 - warmup) / max(1, total - warmup)
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - gone)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * gone))
