"""A worker on a study whose trials are arithmetic: `python -m tests.crash.searcher STUDY.json LOG PAUSE`.

It appends `begin SLOT PID` and `end SLOT PID` to LOG, and prints the study's records when all trials are made.
With `wait` as a fourth argument it says that it is ready, and begins at a line on its stdin.
"""

import math
import os
import sys
import time
from pathlib import Path

import optuna

from sublim.search.config import StudyConfig
from sublim.search.opening import open_search
from sublim.search.pruning import rungs
from sublim.search.study import Asked, Measured, work


def bowl(config: StudyConfig, asked: Asked) -> float:
    """Least at a learning rate of 1e-4 and rank 8."""
    rate, rank = asked.params["lr"], asked.params["method.rank"]
    assert isinstance(rate, float)
    assert isinstance(rank, int)
    value = math.log10(rate / 1e-4) ** 2 + rank / 64
    for rung in rungs(config.pruning, config.updates):
        asked.trial.report(value + 1 / rung, rung)
        if asked.trial.should_prune():
            raise optuna.TrialPruned
    return value


def main() -> None:
    config, log, pause = (
        StudyConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")),
        Path(sys.argv[2]),
        sys.argv[3],
    )
    if sys.argv[4:] == ["wait"]:
        print("ready", flush=True)
        sys.stdin.readline()
    search = open_search(config)

    def note(word: str, asked: Asked) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{word} {asked.slot} {os.getpid()}\n")

    def measure(asked: Asked) -> Measured:
        note("begin", asked)
        time.sleep(float(pause))
        value = bowl(config, asked)
        note("end", asked)
        return Measured([value], {})

    assert work(search, measure, poll=0.1)
    print("[" + ",".join(record.model_dump_json() for record in search.records()) + "]")


if __name__ == "__main__":
    main()
