"""A flow of stages for crash tests: `python -m tests.crash.chain {kill POINT | together NAME | linger}`.

It prints one JSON object on stdout: `stages` (name and state of each) and `content` of the last.
"""

import json
import os
import sys
import time
from pathlib import Path

from prefect import flow

from tasks.stage import RunLog, Stage, run_log
from tests.tasks.sample_stages import CountConfig, RelativesConfig, ShardsConfig

SAMPLE = "tests.tasks.sample_stages"
count = Stage("count", f"{SAMPLE}:count")
shards = Stage("shards", f"{SAMPLE}:shards")
relatives = Stage("relatives", f"{SAMPLE}:relatives")

JOURNAL = os.environ.get("JOURNAL", "")


@flow
def kill(point: str) -> str:
    """Two stages; the process is killed at `point` of the second."""
    numbers = count(CountConfig())
    os.environ["SUBLIM_KILL_AT"] = point
    return shards(ShardsConfig(journal=JOURNAL), numbers=numbers).content


@flow
def together(name: str) -> str:
    """Two short stages and a long one, begun when another run is ready too."""
    Path(f"{JOURNAL}.{name}").touch()
    while not all(Path(f"{JOURNAL}.{other}").exists() for other in ("a", "b")):
        time.sleep(0.01)
    numbers = count(CountConfig())
    first = shards(ShardsConfig(shards=4, size=10, pause=0.25, journal=JOURNAL), numbers=numbers)
    second = shards(ShardsConfig(shards=5, size=20, pause=0.25, journal=JOURNAL), numbers=first)
    return shards(ShardsConfig(shards=8, size=30, pause=0.5, journal=JOURNAL), numbers=second).content


@flow
def linger() -> str:
    """A stage in a process of its own that does not end."""
    os.environ["SUBLIM_ISOLATE"] = "1"
    return relatives(RelativesConfig(journal=JOURNAL, then="wait")).content


if __name__ == "__main__":
    log = RunLog()
    run_log.set(log)
    content = {"kill": kill, "together": together, "linger": linger}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"stages": [(run.stage, run.state) for run in log.stages], "content": content}))
