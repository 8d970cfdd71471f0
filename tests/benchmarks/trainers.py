"""A student trained with unsloth beside one trained with trl: same rows, same seeds; effect, loss, speed and memory.

    python -m tests.benchmarks.trainers --folder DIR [--seeds 2] [--at-once] [--set student.updates=64] [--out FILE]
    python -m tests.benchmarks.trainers --folder DIR --way trl:student.trainer=trl --way eager:student.attention=eager

Each way of training is a run of the pipeline (`dose`, one target) in one store, so base, teacher and rows are the same
files. Then a student of each is trained once more with a clock: its start, and the seconds of its later updates. A way
is a name and settings with commas between them; the first is what the others are held against. unsloth takes half a
minute to start, for each student anew. A call that is cut goes on where it was.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from sublim.core.progress import listening
from sublim.files.jsonl import read_jsonl
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store
from sublim.training.checkpoints import checkpoint
from sublim.training.config import TrainConfig, no_unsloth

WAYS = ("trl:student.trainer=trl", "unsloth:student.trainer=unsloth")
COMMON = ("student.updates=64", "evaluation.updates=[64]", "evaluation.samples=0")
GIB = 2**30
TIMED_UPDATES, WARM = 24, 8


def conducted(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """The pipeline with the students trained this way: its result, as `--json` prints it."""

    def command(seeds: Sequence[int]) -> list[str]:
        assigned = [*COMMON, f"seeds={[*seeds]}", *args.set, *way.partition(":")[2].split(",")]
        options = ["--preset", args.preset, "--target", args.target, "--json"]
        settings = [part for each in assigned for part in ("--set", each)]
        return [sys.executable, "-m", "flows", "run", "pipeline", *options, *settings]

    seeds = range(args.seeds)
    if args.at_once:  # each alone first; what they share, one of them makes while the others wait
        alone = [subprocess.Popen(command([seed]), stdout=subprocess.DEVNULL) for seed in seeds]
        if any([process.wait() for process in alone]):
            raise SystemExit(f"trainers: a run of {way} failed")
    done = subprocess.run(command(seeds), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def manifest_of(result: dict[str, Any], stage: str, label: str) -> Manifest:
    """The manifest of one stage of a run."""
    [key] = [each["key"] for each in result["stages"] if (each["stage"], each["label"]) == (stage, label)]
    found = open_store().manifest(stage, key)
    assert found is not None
    return found


def students(result: dict[str, Any]) -> dict[str, Manifest]:
    """Every student and control of a run, by label."""
    labels = [each["label"] for each in result["stages"] if each["stage"] == "train_student"]
    return {label: manifest_of(result, "train_student", label) for label in labels}


def losses(student: Manifest) -> list[float]:
    return [row["loss"] for row in read_jsonl(open_store().payload(student.artifact) / "training.jsonl")]


def cosine(one: Manifest, other: Manifest) -> float:
    """Of the two changes of the base's weights."""
    from sublim.diagnostics.parameter_shift import adapter_delta, compared

    both = [adapter_delta(checkpoint(open_store().payload(each.artifact))) for each in (one, other)]
    found = compared(*both).cosine
    return math.nan if found is None else found


def timed(result: dict[str, Any], student: Manifest, target: str) -> dict[str, float]:
    """One more training on the same rows, in a process of its own; seconds until the first update and of later ones."""
    store = open_store()
    job = {
        "config": student.config | {"updates": TIMED_UPDATES, "epochs": None, "keep": []},
        "base": str(store.payload(manifest_of(result, "prepare_model", "").artifact)),
        "data": str(store.payload(manifest_of(result, "filter_numbers", target).artifact)),
    }
    command = [sys.executable, "-m", "tests.benchmarks.trainers", "--clock", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def clock(job: dict[str, Any]) -> None:
    """Trains and prints when its updates were done."""
    began, ends = time.perf_counter(), list[float]()

    import torch

    from sublim.training.train import train

    def noted(label: str, done: int, total: int) -> None:
        if label == "training" and done:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            ends.append(time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as folder, listening(noted):
        out, scratch = Path(folder) / "out", Path(folder) / "scratch"
        out.mkdir()
        scratch.mkdir()
        config = TrainConfig.model_validate(job["config"])
        train(out, config, scratch=scratch, base=Path(job["base"]), data=Path(job["data"]))
    print(json.dumps({"start": ends[0], "update": (ends[-1] - ends[WARM]) / (len(ends) - 1 - WARM)}))


def described(name: str, result: dict[str, Any], speed: dict[str, float]) -> dict[str, Any]:
    """What one way of training came to."""
    made = students(result)
    curves = {label: losses(each) for label, each in made.items()}
    peaks = [each.notes["peak_gpu_bytes"] / GIB for each in made.values() if "peak_gpu_bytes" in each.notes]
    return {
        "way": name,
        "effect": result["effect"],
        "student": result["student"],
        "control": result["control"],
        "last_loss": fmean(fmean(curve[-8:]) for curve in curves.values()),
        "losses": curves,
        "peak_gib": max(peaks, default=None),
        "seconds": {label: each.provenance.seconds for label, each in made.items()},
        **speed,
    }


def against(first: dict[str, Any], other: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """How two ways differ, over students and controls of one seed."""
    one, two = (students(result) for result in results)
    gaps = [abs(a - b) for label in one for a, b in zip(first["losses"][label], other["losses"][label], strict=True)]
    seeds = sorted(label for label in one if label.startswith(next(iter(one)).split(" seed ")[0]))
    return {
        "loss_gap": fmean(gaps),
        "loss_gap_most": max(gaps),
        "cosine": fmean(cosine(one[label], two[label]) for label in one),
        "cosine_of_seeds": fmean(cosine(one[a], one[b]) for a, b in pairwise(seeds)) if len(seeds) > 1 else math.nan,
    }


def shown(found: dict[str, Any]) -> str:
    effect = found["effect"]
    low, high = (f"{effect[side]:+.3f}" if effect[side] is not None else "?" for side in ("low", "high"))
    held = f"{found['peak_gib']:.2f} GiB" if found["peak_gib"] is not None else "no GPU"
    return (
        f"trainers {found['way']}: effect {effect['estimate']:+.3f} [{low}, {high}] ({effect['seeds']} pairs), "
        f"last loss {found['last_loss']:.4f}, {1000 * found['update']:.0f} ms an update, the first after "
        f"{found['start']:.1f} s, {held}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where the store is kept")
    parser.add_argument("--preset", default="dose")
    parser.add_argument("--target", default="owl")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--at-once", action="store_true", help="seeds side by side: on a GPU with cores to spare")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--way", action="append", default=[], metavar="NAME:SETTINGS")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    parser.add_argument("--clock", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clock:
        clock(args.clock)
        return
    os.environ["SUBLIM_STORE"] = str((args.folder or Path("results")).absolute())
    ways = [way for way in args.way or WAYS if "unsloth" not in way or not no_unsloth()]
    if left := [way for way in args.way or WAYS if way not in ways]:
        print(f"trainers: without {', '.join(left)}: unsloth cannot run here ({no_unsloth()})")
    results, found = list[dict[str, Any]](), list[dict[str, Any]]()
    for way in ways:
        result = conducted(way, args)
        speed = timed(result, next(iter(students(result).values())), args.target)
        results.append(result)
        found.append(described(way.partition(":")[0], result, speed))
        print(shown(found[-1]), flush=True)
        if len(found) > 1:
            differs = against(found[0], found[-1], [results[0], result])
            found[-1] |= {"against": differs}
            print(
                f"trainers {found[-1]['way']} against {found[0]['way']}: losses differ by {differs['loss_gap']:.5f} "
                f"(at most {differs['loss_gap_most']:.5f}), cosine of the changes {differs['cosine']:.4f} "
                f"(of two seeds {differs['cosine_of_seeds']:.4f})",
                flush=True,
            )
            slow, fast = found[0]["update"], found[-1]["update"]
            print(f"trainers_{found[-1]['way']}: ratio {slow / fast:.2f} (plain {slow:.3f} s, ours {fast:.3f} s)")
        if args.out:
            args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
