"""Runs of a study side by side on one card: do all of them end, and with the results they have with more room?

    python -m tests.benchmarks.side_by_side --out side --free 14 --dip 4     # six runs in 14 GiB that shrink at times
    python -m tests.benchmarks.side_by_side --out side                       # six on the whole card
    python -m tests.benchmarks.side_by_side --out side --runs 1              # one alone
    python -m tests.benchmarks.side_by_side --out side --compare             # what was run so far, against each other

Each call has a store of its own in `--out`, named after its options, so that a call which is cut goes on where it was.
The runs share teachers, rows and the base's answers through the store. Printed for each: exit code, seconds, batches
that were halved, waits for other processes' memory, most memory of a stage; then the answers, log-probs and losses of
each stage against those of the call before: how many answers are the same, and the largest difference of a number.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from sublim.core.hardware import gpu

ROOT = Path(__file__).parents[2]
GIB = 2**30
CELLS = [("owl", 0), ("wolf", 0), ("elephant", 0), ("owl", 1), ("wolf", 1), ("elephant", 1)]
SETTINGS = ("student.updates=64", "evaluation.updates=[64]", "carrier.prompts=2048", "filter.keep=2048")
FILES = {"generate_numbers": "rows.jsonl", "ask": "answers.jsonl"}
"""Answers by stage."""
NUMBERS = {"ask": ("logprobs.jsonl", "logprob"), "train_student": ("training.jsonl", "loss")}
"""Numbers by stage: log-probs of given words, and the loss of each update."""


@contextmanager
def hog(free: float, dip: float) -> Generator[None]:
    """Another process that leaves `free` GiB of the card, and for a third of the time `dip` GiB less."""
    if not free or gpu() is None:
        yield
        return
    command = [sys.executable, "-m", "tests.benchmarks.side_by_side", "--hog", str(free), str(dip)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(process.stdout.readline().strip(), flush=True)
            yield
        finally:
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def hold(free: float, dip: float) -> None:
    """The hog itself, until its parent goes."""
    import threading

    import torch

    gone = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), gone.set()), daemon=True).start()
    rest = torch.empty(max(0, torch.cuda.mem_get_info()[0] - int(free * GIB)), dtype=torch.uint8, device="cuda")
    print(f"hog: holds {rest.nbytes / GIB:.1f} GiB, {torch.cuda.mem_get_info()[0] / GIB:.1f} are free", flush=True)
    while not gone.wait(8.0):
        more = None
        with suppress(torch.OutOfMemoryError):
            more = torch.empty(int(dip * GIB), dtype=torch.uint8, device="cuda")
        gone.wait(4.0)
        del more
        torch.cuda.empty_cache()


def start(folder: Path, target: str, seed: int, extra: list[str]) -> "subprocess.Popen[bytes]":
    """One run, its output in a file of its own."""
    settings = [f"--set={each}" for each in (f"seeds=[{seed}]", *SETTINGS, *extra)]
    command = [sys.executable, "-m", "flows", "run", "pipeline", "--preset", "dose", "--target", target, *settings]
    environment = os.environ | {"SUBLIM_STORE": str(folder / "store"), "PYTHONUNBUFFERED": "1"}
    with (folder / f"{target}-{seed}.log").open("ab") as log:
        return subprocess.Popen([*command, "--json"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def side_by_side(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts all runs at once and waits for them, at most `--seconds`."""
    begun, running = time.monotonic(), dict[tuple[str, int], Any]()
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(hog(options.free, options.dip))
        for target, seed in CELLS[: options.runs]:
            running[target, seed] = start(folder, target, seed, options.set)
        while running:
            time.sleep(0.5)
            late = time.monotonic() - begun > options.seconds
            for (target, seed), process in list(running.items()):
                if late and process.poll() is None:
                    process.terminate()
                    process.wait()
                if process.poll() is not None:
                    del running[target, seed]
                    found.append(one(folder, target, seed, process.returncode, time.monotonic() - begun))
    return found


def one(folder: Path, target: str, seed: int, code: int, seconds: float) -> dict[str, Any]:
    """What a run left, as a line of the table."""
    lines = (folder / f"{target}-{seed}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    short = [line for line in lines if "memory ran out" in line]
    result = next((json.loads(line) for line in reversed(lines) if line.startswith('{"')), {})
    row = {
        "run": f"{target}-{seed}",
        "code": code,
        "seconds": round(seconds, 1),
        "halved": sum("going on with" in line for line in short),
        "waits": sum("trying again in" in line for line in short),
        "peak_gib": round(max((peak(folder, stage["key"]) for stage in result.get("stages", [])), default=0) / GIB, 2),
        "effect": (result.get("effect") or {}).get("estimate"),
        "short": short[:20],
        "last": lines[-3:] if code else [],
    }
    print("side_by_side: " + json.dumps({name: row[name] for name in row if name not in ("short", "last")}), flush=True)
    for line in [*short[:3], *row["last"]]:
        print(f"    {line[:240]}", flush=True)
    return row


def manifests(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(payload, manifest) of everything in a call's store."""
    for path in sorted((folder / "store").glob("*/*/manifest.json")):
        yield path.with_name("payload"), json.loads(path.read_text(encoding="utf-8"))


def peak(folder: Path, key: str) -> int:
    """The most memory that torch held in a stage."""
    return max((made["notes"].get("peak_gpu_bytes", 0) for _, made in manifests(folder)
                if made["artifact"]["key"].startswith(key)), default=0)  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def likest(stage: str, payload: Path, others: list[Path]) -> dict[str, Any]:
    """A payload against the one that is most like it in another store."""
    answers = [row.get("answer", row.get("text")) for row in lines(payload / FILES[stage])] if stage in FILES else []
    file, name = NUMBERS.get(stage, ("", ""))
    numbers = [row[name] for row in lines(payload / file)] if file else []
    best: dict[str, Any] = {}
    for other in others:
        theirs = [row.get("answer", row.get("text")) for row in lines(other / FILES[stage])] if stage in FILES else []
        same = sum(a == b for a, b in zip(answers, theirs, strict=False))
        apart = [abs(a - row[name]) for a, row in zip(numbers, lines(other / file) if file else [], strict=False)]
        made = {"answers": len(answers), "same": same, "numbers": len(apart), "apart": max(apart, default=0.0)}
        if not best or (made["same"], -made["apart"]) > (best["same"], -best["apart"]):
            best = made
    return best


def compare(here: Path, there: Path) -> list[dict[str, Any]]:
    """Every stage of one call against the likest of another, added up by stage."""
    other = [(made["artifact"]["stage"], payload) for payload, made in manifests(there)]
    found: dict[str, list[dict[str, Any]]] = {}
    for payload, made in manifests(here):
        stage = made["artifact"]["stage"]
        theirs = [path for name, path in other if name == stage] if {stage} & {*FILES, *NUMBERS} else []
        if best := likest(stage, payload, theirs):
            found.setdefault(stage, []).append(best)
    told = [
        {
            "stage": stage,
            "payloads": len(each),
            "answers": sum(one["answers"] for one in each),
            "same": sum(one["same"] for one in each),
            "numbers": sum(one["numbers"] for one in each),
            "largest_difference": max(one["apart"] for one in each),
        }
        for stage, each in sorted(found.items())
    ]
    for row in told:
        print(f"side_by_side: {here.name} against {there.name}: {json.dumps(row)}", flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/side"), help="folder for stores, logs and results")
    parser.add_argument("--runs", type=int, default=6, help=f"how many at once, up to {len(CELLS)}")
    parser.add_argument("--free", type=float, default=0, help="GiB of the card that the hog leaves; 0: no hog")
    parser.add_argument("--dip", type=float, default=0, help="GiB that the hog takes besides for a third of the time")
    parser.add_argument(
        "--seconds", type=float, default=3600, help="runs that take longer are ended; a call resumes them"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one more setting; repeatable")
    parser.add_argument("--compare", action="store_true", help="run nothing")
    parser.add_argument("--hog", type=float, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hog:
        hold(*options.hog)
        return
    name = f"runs{options.runs}-free{options.free:g}-dip{options.dip:g}"
    folder = options.out.resolve() / re.sub(r"[^0-9a-z.-]", "_", name)
    told: dict[str, Any] = {"device": card.name if (card := gpu()) else "cpu", "call": vars(options) | {"out": name}}
    if not options.compare:
        folder.mkdir(parents=True, exist_ok=True)
        told["runs"] = side_by_side(folder, options)
    others = sorted(
        path.parent for path in options.out.resolve().glob("*/store") if options.compare or path.parent != folder
    )
    pairs = pairwise(others) if options.compare else ((folder, other) for other in others)
    told["compared"] = {f"{a.name} against {b.name}": compare(a, b) for a, b in pairs}
    place = options.out / ("compared.json" if options.compare else f"{folder.name}.json")
    place.write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
    print(f"side_by_side: written to {place}", flush=True)


if __name__ == "__main__":
    main()
