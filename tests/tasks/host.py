"""A machine of its own, for tests of a store in a bucket: runs two sample stages and prints what became of them."""

import json
import logging
import os
import sys
from typing import Any

from tasks.stage import RunLog, Stage, run_log
from tests.tasks.sample_stages import CountConfig, PickConfig

count = Stage("count", "tests.tasks.sample_stages:count")
pick = Stage("pick", "tests.tasks.sample_stages:pick")


def main(upto: int, pause: float) -> None:
    from prefect import flow

    log = RunLog()

    @flow(name="sample")
    def sample() -> Any:
        token = run_log.set(log)
        try:
            return pick(PickConfig(), numbers=count(CountConfig(upto=upto, pause=pause)))
        finally:
            run_log.reset(token)

    sample()
    print(json.dumps([f"{run.stage} {run.state}" for run in log.stages]))


if __name__ == "__main__":
    logging.getLogger("sublim").setLevel(logging.INFO)
    print(f"ready {os.getpid()}", file=sys.stderr, flush=True)
    main(int(sys.argv[1]), float(sys.argv[2]))
