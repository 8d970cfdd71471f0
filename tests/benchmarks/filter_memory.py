"""Peak memory of generating and filtering a dataset of 1,000,000 rows, against the rows as a list of dicts.

    python -m tests.benchmarks.filter_memory [--rows 1000000]

The answers come from the fake backend, so that only our own plumbing is measured. Each part runs in a process of its
own, and its peak is all of that process: interpreter and imports too. Takes a few minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.carriers.numbers import NumberList, read_numbers
from sublim.inference.config import FakeBackend, SamplingParams
from sublim.rows.config import FilterConfig
from sublim.rows.filter import filter_numbers
from sublim.rows.generate import GenerateConfig, generate_numbers

FILTER = FilterConfig(max_count=None, max_digits=9)


def generate(folder: Path, rows: int) -> None:
    config = GenerateConfig(
        prompts=NumberPrompts(templates=load_number_templates("numbers")),
        n_prompts=rows,
        backend=FakeBackend(),
        sampling=SamplingParams(max_tokens=50),
    )
    generate_numbers(folder / "raw", config, scratch=folder / "scratch", base=folder)


def filtered(folder: Path, rows: int) -> None:
    filter_numbers(folder / "ours", FILTER, scratch=folder / "scratch", raw=folder / "raw")


def plain(folder: Path, rows: int) -> None:
    with (folder / "raw" / "rows.jsonl").open() as file:
        read = [json.loads(line) for line in file]
    kept = [row for row in read if isinstance(read_numbers(row["answer"], FILTER, finish=row["finish"]), NumberList)]
    with (folder / "plain" / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({**row, "system": None}) + "\n" for row in kept)


PARTS = {"generate": generate, "filtered": filtered, "plain": plain}


def peak_of(part: str, folder: Path, rows: int) -> float:
    """Peak resident memory in MB of a process that runs `part`."""
    command = [sys.executable, "-m", "tests.benchmarks.filter_memory", "--rows", str(rows), part, str(folder)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("folder", nargs="?", type=Path)
    args = parser.parse_args()
    if args.part:
        PARTS[args.part](args.folder, args.rows)
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        print(kilobytes / 1024)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "scratch", "ours", "plain"):
            (Path(folder) / name).mkdir()
        ours = max(peak_of(part, Path(folder), args.rows) for part in ("generate", "filtered"))
        listed = peak_of("plain", Path(folder), args.rows)
    print(f"filter_memory: ratio {listed / ours:.1f} (plain list of dicts {listed:.0f} MB, ours {ours:.0f} MB, cpu)")


if __name__ == "__main__":
    main()
