"""A pipeline whose independent stages run side by side, against one stage after another.

    python -m tests.benchmarks.lanes                       # two lanes that share the cores of this CPU, small settings
    python -m tests.benchmarks.lanes --preset dose --set 'target=[owl]'   # on a host with two GPUs: a lane for each

Both begin with the rows of teacher and base in the store, so that what differs is how students are trained and asked.
Says too whether both wrote the same bytes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.server import running_server

SMALL = (
    "carrier.prompts=96",
    "filter.keep=null",
    "student.updates=16",
    "seeds=[0, 1]",
    "evaluation.samples=2",
    "evaluation.shift=false",
)
PARALLEL = ("train_student", "ask")


class Ran(NamedTuple):
    """One run: its seconds, and what its stages wrote by key."""

    seconds: float
    contents: dict[str, str]


def run(store: Path, lanes: int, arguments: list[str]) -> Ran:
    """A pipeline run with so many lanes."""
    environment = {**os.environ, "SUBLIM_STORE": str(store), "SUBLIM_LANES": str(lanes)}
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.pipeline", "--json", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    seconds = time.perf_counter() - started
    name = json.loads(done.stdout.splitlines()[-1])["run"]
    record: dict[str, Any] = json.loads((store / "runs" / name / "run.json").read_text())
    return Ran(seconds, {each["key"]: each["content"] for each in record["stages"]})


def forget(store: Path) -> None:
    """Leaves the store with what is made before students are."""
    for stage in (*PARALLEL, "score", "compare"):
        shutil.rmtree(store / stage, ignore_errors=True)
    for record in (store / "records").glob("*"):
        if record.name.startswith(tuple(f"{stage}-" for stage in PARALLEL)):
            record.unlink()


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--preset", default="quickstart")
    reader.add_argument("--set", action="append", default=[])
    reader.add_argument("--lanes", type=int, default=2)
    reader.add_argument("--repeats", type=int, default=2, help="runs of each kind, of which the faster counts")
    options = reader.parse_args()
    settings = options.set or (list(SMALL) if options.preset == "quickstart" else [])
    arguments = ["--preset", options.preset, *(part for each in settings for part in ("--set", each))]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sublim-benchmark-")))
        os.environ["PREFECT_HOME"] = str(scratch / "home")
        os.environ["PREFECT_API_URL"] = stack.enter_context(running_server(scratch / "home"))
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        run(scratch / "store", 1, arguments)
        found: dict[int, Ran] = {}
        for lanes in (1, options.lanes) * options.repeats:
            forget(scratch / "store")
            ran = run(scratch / "store", lanes, arguments)
            print(f"lanes: {lanes} took {ran.seconds:.1f} s", flush=True)
            best = found.get(lanes)
            found[lanes] = ran if best is None or ran.seconds < best.seconds else best
    one, several = found[1], found[options.lanes]
    same = sum(several.contents[key] == content for key, content in one.contents.items())
    print(
        f"lanes: ratio {one.seconds / several.seconds:.2f} (one {one.seconds:.1f} s, {options.lanes} lanes "
        f"{several.seconds:.1f} s, {os.cpu_count()} cores; {same} of {len(one.contents)} artifacts have the same bytes)"
    )


if __name__ == "__main__":
    main()
