"""The default superposition sweep against a plain loop: `python -m tests.benchmarks.superposition`.

The sweep (66 models, 10,000 steps) is timed whole; the loop on 3 models × 1,000 steps (one teacher, two students),
scaled to the sweep's 11 teachers and 55 students, at the better of one thread and all of them. Core-seconds are less
disturbed by whatever else the machine does. The torch engine, for machines without a compiler, runs on one thread.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from sublim.toys.superposition.config import SuperpositionConfig
from sublim.toys.superposition.train import train_superposition
from tests.benchmarks.plain_toys import Autoencoder, train_autoencoder


class Cost(NamedTuple):
    """Seconds by the clock and of both cores together."""

    wall: float
    cores: float


def cost(work: Callable[[], object]) -> Cost:
    wall, cores = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cores)


def plain_sweep() -> Cost:
    """The loop over single models, scaled from 3 models × 1,000 steps."""
    train_autoencoder(0.5, 20, "cpu")
    made: list[Autoencoder] = []
    teacher = cost(lambda: made.append(train_autoencoder(0.5, 1000, "cpu")))
    students = [cost(lambda i=i: train_autoencoder(0.5, 1000, "cpu", teacher=made[0], ablated=i)) for i in (0, 4)]
    per_point = [one + 5 * sum(many) / 2 for one, many in zip(teacher, zip(*students, strict=True), strict=True)]
    return Cost(*(11 * 10 * each for each in per_point))


def main() -> None:
    threads = torch.get_num_threads()
    plain: dict[int, Cost] = {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        plain[count] = plain_sweep()
    torch.set_num_threads(threads)
    best = min(plain, key=lambda count: plain[count].wall)
    loop = plain[best]
    for engine, steps in (("native", 10_000), ("torch", 500)):
        used = threads if engine == "native" else 1
        torch.set_num_threads(used)
        config = SuperpositionConfig.model_validate({"engine": engine, "other_initialisation": False, "steps": steps})
        with tempfile.TemporaryDirectory() as folder:
            found = cost(lambda c=config, at=Path(folder): train_superposition(at, c, scratch=at))
        ours = Cost(*(each * 10_000 / steps for each in found))
        print(
            f"superposition sweep, {engine}: ratio {loop.wall / ours.wall:.1f}"
            f" (plain {loop.wall:.1f} s scaled from 3 models x 1000 steps on {best} threads,"
            f" ours {ours.wall:.1f} s from {steps} steps on {used} threads;"
            f" core-seconds {loop.cores:.0f} and {ours.cores:.0f}: ratio {loop.cores / ours.cores:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
