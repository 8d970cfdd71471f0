"""What ten cached stages add to an empty flow, on a running server: `python -m tests.benchmarks.cached_flow`.

The target is under 3 s extra. It starts a server of its own unless PREFECT_API_URL names one.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import tasks  # noqa: F401 - settles Prefect's environment
from tests.server import running_server

REPEATS = 5


def measure(run: Callable[[], Any]) -> float:
    """Median seconds of a call, after one that does not count."""
    run()
    times: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


class Times(NamedTuple):
    """Seconds of an empty flow, of one with ten cached stages, and of those ten stages in it."""

    empty: float
    cached: float
    stages: float


def compare() -> Times:
    """Both flows, one after the other, in this process."""
    from prefect import flow

    from tasks.stage import RunLog, Stage, run_log
    from tests.tasks.sample_stages import CountConfig, PickConfig

    count = Stage("count", "tests.tasks.sample_stages:count")
    pick = Stage("pick", "tests.tasks.sample_stages:pick")

    @flow
    def empty() -> None: ...

    @flow
    def ten_stages() -> None:
        numbers = count(CountConfig(upto=1000))
        for below in range(9):
            numbers = pick(PickConfig(below=1000 - below), label=str(below), numbers=numbers)

    ten_stages()
    log = RunLog()
    run_log.set(log)
    plain, ours = measure(empty), measure(ten_stages)
    assert len(log.stages) == 10 * (REPEATS + 1)
    assert {run.state for run in log.stages} == {"Cached"}
    return Times(plain, ours, sum(run.seconds for run in log.stages) / (REPEATS + 1))


def main() -> None:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sublim-benchmark-")))
        os.environ["SUBLIM_STORE"] = str(scratch / "store")
        if "PREFECT_API_URL" not in os.environ:
            os.environ["PREFECT_HOME"] = str(scratch / "home")
            os.environ["PREFECT_API_URL"] = stack.enter_context(running_server(scratch / "home"))
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        times = compare()
    ratio, extra = times.cached / times.empty, times.cached - times.empty
    print(
        f"cached_flow: ratio {ratio:.1f} (empty flow {times.empty:.2f} s, ten cached stages {times.cached:.2f} s, cpu)"
    )
    # Any flow of less than a second waits for the heartbeat's thread, which sleeps whole seconds.
    print(f"cached_flow: {extra:.2f} s extra, of 3 allowed; the ten stages by themselves took {times.stages:.2f} s")


if __name__ == "__main__":
    main()
