"""The default superposition sweep against a plain loop: `python -m tests.benchmarks.superposition`.

The sweep (66 models, 10,000 steps) is timed whole; the loop on 3 models × 1,000 steps (one teacher, two students),
scaled to the sweep's 11 teachers and 55 students, at the better of one thread and all of them.
"""

import tempfile
import time
from pathlib import Path

import torch

from sublim.superposition import train_superposition
from sublim.superposition_config import SuperpositionConfig
from tests.benchmarks.plain_toys import sweep_seconds


def main() -> None:
    threads = torch.get_num_threads()
    plain: dict[int, float] = {}
    for count in {1, threads}:
        torch.set_num_threads(count)
        plain[count] = sweep_seconds("cpu", 1000, points=11, seeds=1, of_steps=10_000)
    torch.set_num_threads(threads)
    best = min(plain, key=plain.__getitem__)
    for engine in ("native", "torch"):
        steps = 10_000 if engine == "native" else 500
        config = SuperpositionConfig(engine=engine, other_initialisation=False, steps=steps)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            train_superposition(Path(folder), config, scratch=Path(folder))
            ours = (time.perf_counter() - start) * 10_000 / steps
        scaled = "" if steps == 10_000 else f", ours scaled from {steps} steps"
        loop = f"plain {plain[best]:.1f} s scaled from 3 models x 1000 steps at {best} threads"
        print(
            f"superposition sweep, {engine}: ratio {plain[best] / ours:.1f}"
            f" ({loop}, ours {ours:.1f} s{scaled}, {threads} cores)",
            flush=True,
        )


if __name__ == "__main__":
    main()
