"""A sweep fanned out to one worker, then to N: `python -m tests.benchmarks.fanout --workers 2`.

It starts a Prefect server, a pool and the workers, and ends them all. On a host with GPUs `--gpus` gives each worker
one of them:

    python -m tests.benchmarks.fanout --gpus --workers 4 --preset dose --cells 3 --out fanout/

First one cell runs for what all cells share (model, teacher, rows). Then `--cells` cells go to one worker, and
`--cells` × N others to N: every cell trains and asks students of seeds that no other has. Printed are cells per hour,
their ratio (wanted: 0.9 × N or more) and how busy the cards were; `timeline.svg` shows who ran what when. The scale
at toy size on two cores says nothing about GPUs: there the workers share the cores.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import tasks  # noqa: F401 - settles Prefect's environment
from tests.benchmarks.timeline import Bar, draw
from tests.lab import Lab, lab_at
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]


class Measured(NamedTuple):
    """One fan-out."""

    workers: int
    cells: int
    seconds: float
    bars: list[Bar]
    busy: dict[str, float]
    """Mean utilisation of each card in percent."""

    @property
    def an_hour(self) -> float:
        return 3600 * self.cells / self.seconds


def toy(folder: Path) -> dict[str, Any]:
    """Pipelines of seconds."""
    return {
        "model": {"kind": "local", "path": str(tiny_model(folder / "model", "qwen2"))},
        "teacher": {"kind": "prompt"},
        "carrier": {"prompts": 16, "constraint": None},
        "filter": {"keep": 8},
        "student": {"updates": 2, "batch_size": 4, "warmup_updates": 1, "max_length": 600, "keep": []},
        "evaluation": {"samples": 2, "updates": []},
        "backend": {"kind": "fake", "invalid": 0.1},
    }


@contextmanager
def watched_cards() -> Generator[dict[str, list[float]]]:
    """Utilisation of every card, once a second, for as long as this is open."""
    seen: dict[str, list[float]] = {}
    done = threading.Event()

    def look() -> None:
        query = ["nvidia-smi", "--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits"]
        while not done.wait(1.0):
            told = subprocess.run(query, capture_output=True, text=True, check=False).stdout
            for line in told.splitlines():
                card, percent = line.split(",")
                seen.setdefault(card.strip(), []).append(float(percent))

    thread = threading.Thread(target=look, daemon=True)
    if shutil.which("nvidia-smi"):
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


def fan_out(lab: Lab, options: argparse.Namespace, workers: int, seeds: range, settings: dict[str, Any]) -> Measured:
    """Hands one cell for each seed to so many workers and waits for the table."""
    from flows.sweep.flow import sweep

    with ExitStack() as stack:
        begun = datetime.now(UTC)
        for number in range(workers):
            card = {"CUDA_VISIBLE_DEVICES": str(number)} if options.gpus else {}
            arguments = ("--gpu", str(number)) if options.gpus else ()
            stack.enter_context(lab.worker("bench", *arguments, name=f"worker-{number}", **card))
        wait_for_workers(lab, workers, begun)
        cards = stack.enter_context(watched_cards())
        started = time.time()
        where = {"kind": "pool", "deployment": "pipeline/bench", "poll_seconds": 1.0}
        tree = {"preset": options.preset, "settings": settings, "target": ["owl"], "seeds": [*seeds], "where": where}
        outcome = sweep(preset="quickstart", settings=tree)
        seconds = time.time() - started
    assert outcome["failed"] == 0, outcome["failures"]
    assert outcome["cached"] == 0, "these cells were made before"
    busy = {card: sum(percents) / len(percents) for card, percents in cards.items()}
    return Measured(workers, len(seeds), seconds, bars_since(started), busy)


def wait_for_workers(lab: Lab, wanted: int, begun: datetime) -> None:
    """Until so many have asked for work; those of an earlier fan-out still count as online on the server."""
    from prefect.client.orchestration import get_client

    from tests.lab import until

    def online() -> int:
        with get_client(sync_client=True) as client:
            told = client.request(
                "POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": "bench"}, json={}
            )
        return sum(datetime.fromisoformat(each["last_heartbeat_time"]) > begun for each in told.json())

    until(lambda: online() >= wanted, 90, lab.logs)


def bars_since(started: float) -> list[Bar]:
    """The runs that were given to workers since a moment, by worker."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.deployment_id and run.start_time and run.end_time]
    found: list[Bar] = []
    for run in runs:
        assert run.start_time
        assert run.end_time
        if run.start_time.timestamp() >= started:
            worker = next((tag for tag in run.tags if tag.startswith("worker-")), "?")
            found.append(
                Bar(worker, run.name, run.start_time.timestamp() - started, run.end_time.timestamp() - started)
            )
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cells", type=int, default=2, help="cells for each worker")
    parser.add_argument("--gpus", action="store_true", help="a card for each worker")
    parser.add_argument("--preset", default="quickstart", help="of the pipeline")
    parser.add_argument("--settings", type=json.loads, default={}, help="laid over it, as JSON")
    parser.add_argument("--store", type=Path, help="a store that has what the cells share")
    parser.add_argument(
        "--out", type=Path, default=Path("results/fanout"), help="folder for timeline.svg and fanout.json"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `timeout` must not leave server and workers behind
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sublim-benchmark-")))
        if options.store:
            (scratch / "store").symlink_to(options.store.resolve())
        os.environ["SUBLIM_STORE"] = str(scratch / "store")
        os.environ["PREFECT_HOME"] = str(scratch / "home")
        lab = stack.enter_context(lab_at(scratch))
        lab.pool("bench")
        deploy(lab)
        settings = options.settings if options.gpus else toy(scratch) | options.settings
        fan_out(lab, options, 1, range(1000, 1001), settings)  # what all cells share
        one = fan_out(lab, options, 1, range(2000, 2000 + options.cells), settings)
        many = fan_out(lab, options, options.workers, range(3000, 3000 + options.cells * options.workers), settings)
    ratio = many.an_hour / one.an_hour
    draw(options.out / "timeline.svg", {"1 worker": one.bars, f"{options.workers} workers": many.bars})
    told = {"ratio": ratio, "of": options.workers, "one": one._asdict(), "many": many._asdict()}
    (options.out / "fanout.json").write_text(json.dumps(told, indent=1))
    device = "gpu" if options.gpus else "cpu"
    print(f"fanout: {one.an_hour:.0f} cells an hour on 1 worker, {many.an_hour:.0f} on {options.workers} ({device})")
    busy = "".join(f", card {card} {percent:.0f} % busy" for card, percent in sorted(many.busy.items()))
    print(f"fanout: ratio {ratio:.2f}, wanted {0.9 * options.workers:.1f}{busy}; {options.out / 'timeline.svg'}")


def deploy(lab: Lab) -> None:
    """The pipeline, from this checkout, for the pool `bench`."""
    from flows.pipeline.flow import pipeline

    source = pipeline.from_source(source=str(ROOT), entrypoint="flows/pipeline/flow.py:pipeline")
    source.deploy(
        name="bench",
        work_pool_name="bench",
        job_variables={"working_dir": str(ROOT)},
        print_next_steps=False,
        ignore_warnings=True,
    )


if __name__ == "__main__":
    main()
