"""Small real stages for the tests of the cache: deterministic, resumable, and killable at named points."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from sublim.core.config import Config, RunOnly
from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl, write_jsonl

log = logging.getLogger("sublim.sample")


class CountConfig(Config):
    """Counts up to `upto` in steps, keeping each step in scratch."""

    upto: int = 5
    """Numbers to write."""
    pause: RunOnly[float] = 0.0
    """Seconds per number."""


class PickConfig(Config):
    """Keeps the multiples of `of` below a limit."""

    of: int = 2
    """Divisor."""
    below: int = 1000
    """Numbers from here on are dropped."""


class ShardsConfig(Config):
    """Some files made from shards that scratch keeps."""

    shards: int = 6
    """Files to write."""
    size: int = 100_000
    """Bytes per file."""
    pause: RunOnly[float] = 0.0
    """Seconds per shard."""
    journal: RunOnly[str] = ""
    """File that gets a line `stage pid` whenever a body starts."""


class FailConfig(Config):
    """Fails in a chosen way."""

    how: str = "user"
    """user, own, bug, disk, killed, killed once, network once, exit, gpu memory, memory or notes."""
    counter: RunOnly[str] = ""
    """File that the kernel counts in, for `memory`."""


class RelativesConfig(Config):
    """Starts processes that outlive their use."""

    journal: RunOnly[str]
    """File that gets the pids: the body's, those of a program it started and of a fork."""
    then: RunOnly[str] = "return"
    """return, die or wait."""


class OwnError(UserError):
    """A user's mistake with a type of its own."""


def count(out: Path, config: CountConfig, *, scratch: Path) -> dict[str, Any]:
    """Writes 0, 1, 2, ...; each number is kept in scratch, so that a killed run goes on where it was."""
    resumed = len(list(scratch.glob("*.txt")))
    with progress("counting", config.upto) as advance:
        for number in range(config.upto):
            part = scratch / f"{number}.txt"
            if not part.exists():
                time.sleep(config.pause)
                draft = scratch / "draft"
                draft.write_text(str(number))
                if number == 2:
                    kill_point("mid-checkpoint")
                draft.replace(part)
            advance(1)
            if number == 3:
                kill_point("drafting")
    write_jsonl(out / "numbers.jsonl", ({"n": int((scratch / f"{i}.txt").read_text())} for i in range(config.upto)))
    log.info("counted to %d", config.upto)
    return {"resumed": resumed}


def pick(out: Path, config: PickConfig, *, scratch: Path, numbers: Path) -> None:
    """Keeps some of the numbers."""
    rows = read_jsonl(numbers / "numbers.jsonl")
    write_jsonl(out / "numbers.jsonl", (row for row in rows if row["n"] % config.of == 0 and row["n"] < config.below))


def total(out: Path, config: Config, *, scratch: Path, parts: list[Path]) -> None:
    """Adds up the numbers of several inputs."""
    (out / "total.txt").write_text(str(sum(row["n"] for part in parts for row in read_jsonl(part / "numbers.jsonl"))))


def shards(out: Path, config: ShardsConfig, *, scratch: Path, numbers: Path | None = None) -> dict[str, Any]:
    """Writes files of known bytes; each is kept in scratch first, so that a killed run goes on where it was."""
    if config.journal:
        with Path(config.journal).open("a", encoding="utf-8") as file:
            file.write(f"{out.parent.name.partition('-')[0]} {os.getpid()}\n")
    resumed = len(list(scratch.glob("*.bin")))
    with progress("sharding", config.shards) as advance:
        for number in range(config.shards):
            part = scratch / f"{number}.bin"
            if not part.exists():
                time.sleep(config.pause)
                draft = scratch / "draft"
                draft.write_bytes(bytes([number]) * config.size)
                if number == 2:
                    kill_point("mid-checkpoint")
                draft.replace(part)
            advance(1)
    for number in range(config.shards):
        (out / f"{number}.bin").write_bytes((scratch / f"{number}.bin").read_bytes())
        if number == 3:
            kill_point("drafting")
    return {"resumed": resumed}


def who(out: Path, config: Config, *, scratch: Path, before: Path | None = None) -> dict[str, Any]:
    """Says which process it ran in."""
    (out / "done").write_text("")
    print("a word on stdout")
    return {"pid": os.getpid()}


def relatives(out: Path, config: RelativesConfig, *, scratch: Path) -> None:
    """Leaves a program and a fork of this process running."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    fork = os.fork()
    if not fork:
        time.sleep(300)
        os._exit(0)
    journal = Path(config.journal)
    journal.with_suffix(".draft").write_text(f"{os.getpid()} {program.pid} {fork}")
    journal.with_suffix(".draft").replace(journal)
    if config.then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.then == "wait":
        time.sleep(300)


def fail(out: Path, config: FailConfig, *, scratch: Path) -> dict[str, Any]:
    """Raises, or ends its process."""
    print("last words", flush=True)
    match config.how:
        case "user":
            raise UserError("lower the number")
        case "own":
            raise OwnError("raise the limit")
        case "disk":
            with Path("/dev/full").open("w", encoding="utf-8") as file:
                file.write("x" * 100_000)
        case "killed once" | "network once" if (scratch / "was here").exists():
            (out / "done").write_text("")
        case "killed" | "killed once":
            (scratch / "was here").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        case "network once":
            (scratch / "was here").write_text("")
            raise httpx.ConnectError("no route to host")
        case "memory":
            Path(config.counter).write_text("pgfault 9\noom_kill 4\noom_kill_other 9\n", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "gpu memory":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
        case "notes":
            return {"path": Path("no JSON")}
        case _:
            raise ValueError("a bug of ours")
    return {}
