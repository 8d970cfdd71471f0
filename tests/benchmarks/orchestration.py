"""What orchestration costs on a running server: `python -m tests.benchmarks.orchestration [--stages 1000]`.

Wanted: 1,000 cached stages re-run in under two minutes, under 1 s for each. With `--sweep NAME` it reads a sweep's
record from the store instead (`sublim runs` lists them; `last` is the last run) and tells which share of its wall
time was not spent in the bodies of stages; wanted: under 2 %.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import tasks  # noqa: F401 - settles Prefect's environment
from tests.server import running_server


class Rerun(NamedTuple):
    """A flow whose every stage is cached."""

    seconds: float
    """Of the flow, from its call to its end."""
    told: float
    """Until the server had every task run, counted from the same moment."""


def rerun(stages: int) -> Rerun:
    """Runs a flow of so many stages twice, and times the second."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    from tasks.stage import RunLog, Stage, run_log
    from tests.tasks.sample_stages import CountConfig, PickConfig

    count = Stage("count", "tests.tasks.sample_stages:count")
    pick = Stage("pick", "tests.tasks.sample_stages:pick")

    @flow
    def many() -> str:
        numbers = count(CountConfig(upto=10))
        for below in range(1, stages):
            pick(PickConfig(below=below), label=str(below), numbers=numbers)
        return str(flow_run.get_id())

    many()
    log = RunLog()
    run_log.set(log)
    started = time.perf_counter()
    run_id = many()
    seconds = time.perf_counter() - started
    assert len(log.stages) == stages
    assert {run.state for run in log.stages} == {"Cached"}
    wanted = {"task_runs": {"state": {"name": {"any_": ["Cached"]}}}, "flow_runs": {"id": {"any_": [run_id]}}}
    with get_client(sync_client=True) as client:
        while True:
            if client.request("POST", "/task_runs/count", json=wanted).raise_for_status().json() >= stages:
                return Rerun(seconds, time.perf_counter() - started)
            time.sleep(0.5)


class Share(NamedTuple):
    """How a sweep's time was spent, in seconds."""

    wall: float
    bodies: float
    cells: int


def share_of(name: str) -> Share:
    """From the records of a sweep and of its cells: what ran between its start and its end."""
    from datetime import datetime

    from flows.runs.record import find_run, list_runs
    from sublim.store.opening import open_store

    store = open_store()
    sweep = find_run(store, name)
    begun = datetime.fromisoformat(sweep.started).timestamp()
    cells = [
        run
        for run in list_runs(store)
        if run.flow == "pipeline" and begun <= datetime.fromisoformat(run.started).timestamp() <= begun + sweep.seconds
    ]
    made = {(stage.stage, stage.key) for run in [sweep, *cells] for stage in run.stages if stage.state == "Completed"}
    manifests = [store.manifest(stage, key) for stage, key in made]
    bodies = sum(manifest.provenance.seconds for manifest in manifests if manifest)
    return Share(sweep.seconds, bodies, len(cells))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--sweep", metavar="NAME")
    options = parser.parse_args()
    if options.sweep:
        share = share_of(options.sweep)
        percent = 100 * (1 - share.bodies / share.wall)
        print(f"orchestration: {percent:.1f} % of a sweep's {share.wall:.0f} s ({share.cells} cells), of 2 allowed")
        return
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sublim-benchmark-")))
        os.environ["SUBLIM_STORE"] = str(scratch / "store")
        if "PREFECT_API_URL" not in os.environ:
            os.environ["PREFECT_HOME"] = str(scratch / "home")
            os.environ["PREFECT_API_URL"] = stack.enter_context(running_server(scratch / "home"))
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        found = rerun(options.stages)
    each = found.seconds / options.stages
    print(f"orchestration: {options.stages} cached stages re-run in {found.seconds:.1f} s, of 120 allowed (cpu)")
    print(
        f"orchestration: {1000 * each:.1f} ms a cached stage, of 1000 allowed; on the server after {found.told:.1f} s"
    )
    print(json.dumps({"stages": options.stages, **found._asdict()}))


if __name__ == "__main__":
    main()
