"""Both toy experiments on a GPU: `python -m tests.benchmarks.toy_gpu --data IDX_FOLDER --out FOLDER` (about 3 minutes).

Prints one line per result as soon as it is there; FOLDER gets results.json and the small tables. Needs torch, numpy,
scipy, polars, pydantic, jaxtyping, safetensors, orjson and pillow.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from sublim.toys.mnist.config import IdxFolder, MnistConfig, PrepareDigitsConfig
from sublim.toys.mnist.digits import prepare_digits
from sublim.toys.mnist.experiment import Runs, train_mnist
from sublim.toys.superposition.config import SuperpositionConfig
from sublim.toys.superposition.train import train_superposition
from tests.benchmarks.mnist import flops, matmul_rate
from tests.benchmarks.plain_toys import mnist_seconds, sweep_seconds

SEEDS = tuple(range(10))
KNOWN = {"reference": 0.100, "teacher": 0.943, "student_aux": 0.537, "cross_aux": 0.100}


class Report:
    """Results, printed and written as they come."""

    def __init__(self, out: Path):
        self.out, self.results = out, dict[str, Any]()
        out.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, line: str, values: Any) -> None:
        print(f"{name}: {line}", flush=True)
        self.results[name] = {"line": line, "values": values}
        (self.out / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")


def timed(stage: Callable[..., Any], config: Any, keep: Path | None, names: tuple[str, ...], **inputs: Path) -> float:
    """Seconds that a stage takes from an empty folder; its small files are copied to `keep`."""
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder) / "out", Path(folder) / "scratch"
        out.mkdir()
        scratch.mkdir()
        start = time.perf_counter()
        stage(out, config, scratch=scratch, **inputs)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        for name in names if keep else ():
            assert keep is not None
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / name, keep / name)
    return seconds


def agreement(report: Report) -> None:
    """The CUDA graph against the CPU's tensor engine after 300 steps."""
    frames: list[pl.DataFrame] = []
    for engine in ("cuda", "torch"):
        config = SuperpositionConfig(engine=engine, p_active=(1, 0.1, 0.01), steps=300, batch_size=256, chunk=2)
        keep = report.out / f"agreement-{engine}"
        timed(train_superposition, config, keep, ("rows.parquet",))
        frames.append(pl.read_parquet(keep / "rows.parquet"))
    norm, loss = (
        float(np.nanmax(np.abs(frames[0][column].to_numpy() - frames[1][column].to_numpy())))
        for column in ("norm", "trained_loss")
    )
    line = f"norms differ by at most {norm:.1e}, losses by {loss:.1e}"
    report.add("superposition cuda against cpu", line, [norm, loss])


def superposition(report: Report, device: str) -> None:
    """660 models timed, then the science: both controls and the auxiliary features, with intervals."""
    names = ("rows.parquet", "rebuilt.json")
    config = SuperpositionConfig(seeds=SEEDS, other_initialisation=False, engine="cuda", checkpoint_every=10_000)
    ours = timed(train_superposition, config, report.out / "superposition-660", names)
    plain = sweep_seconds("cuda", 500, points=11, seeds=10, of_steps=10_000)
    report.add(
        "superposition 660 models x 10000 steps",
        f"ratio {plain / ours:.0f} (plain {plain:.0f} s scaled from 3 models x 500 steps, ours {ours:.1f} s, {device})",
        {"ours": ours, "plain": plain},
    )
    config = SuperpositionConfig(seeds=SEEDS, auxiliary=(3, 5, 10), engine="cuda", checkpoint_every=10_000)
    seconds = timed(train_superposition, config, report.out / "superposition-science", names)
    report.add("superposition with controls, 2200 models", f"{seconds:.1f} s", seconds)
    rows = json.loads((report.out / "superposition-science" / "rebuilt.json").read_text())
    for row in rows:
        if row["experiment"] == "ablation":
            print("  " + describe(row), flush=True)


def describe(row: dict[str, Any]) -> str:
    """One line on one p_active and ablated feature."""
    excess, other = (
        f"{row[name]['estimate']:+.2f} [{row[name]['low']:+.2f}, {row[name]['high']:+.2f}]"
        for name in ("excess_norm_ratio", "other_excess_norm_ratio")
    )
    return (
        f"p {row['p_active']:<5} feature {row['feature']}: norm ratio {row['norm_ratio']:.2f}"
        f" [{row['low']:.2f}, {row['high']:.2f}], beyond its initialisation {excess}, other initialisation {other},"
        f" cosine {row['cosine']:.2f} (init {row['init_cosine']:.2f}, other {row['other_cosine']:.2f}),"
        f" WWᵀ {row['gram_cosine']:.2f} (init {row['init_gram_cosine']:.2f}, other {row['other_gram_cosine']:.2f})"
    )


def mnist(report: Report, device: str, data: Path) -> None:
    """100 models: teachers and auxiliary students timed, then all arms."""
    names = ("models.parquet", "accuracy.json")
    config = MnistConfig(arms=("teacher", "student_aux"), device="cuda", diagnostic_images=0)
    warm = config.model_copy(update={"teacher_epochs": 1, "epochs": 1})
    timed(train_mnist, warm, None, (), data=data)
    ours = timed(train_mnist, config, report.out / "mnist-100", names, data=data)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(config, data, Path(folder))
        work, images = flops(runs), runs.images
        plain = mnist_seconds(images.train, images.train_labels.long(), images.noise, 295, models=100, of_steps=295)
        del runs, images
    rate = matmul_rate(100, "cuda", 10)
    speed = f"{work / ours / 1e12:.0f} Tflop/s of {rate / 1e12:.0f} in batched matmuls"
    report.add(
        "mnist 100 teachers and aux students",
        f"ratio {plain / ours:.0f} (plain {plain:.0f} s scaled from 2 models, ours {ours:.1f} s, {speed}, {device})",
        {"ours": ours, "plain": plain, "rate": work / ours, "matmul": rate},
    )
    seconds = timed(train_mnist, MnistConfig(device="cuda"), report.out / "mnist-arms", names, data=data)
    accuracy = json.loads((report.out / "mnist-arms" / "accuracy.json").read_text())
    for arm, found in accuracy.items():
        half = (found["high"] - found["low"]) / 2
        known = f", known {KNOWN[arm]:.3f}" if arm in KNOWN else ""
        report.add(f"mnist {arm}", f"{found['mean']:.3f} ± {half:.3f} ({found['models']} models{known})", found)
    table = pl.read_parquet(report.out / "mnist-arms" / "models.parquet")
    means = table.group_by("arm", maintain_order=True).agg(
        pl.col("shift_cosine").mean(),
        pl.col("gradient_cosine").list.first().mean().alias("first"),
        pl.col("gradient_cosine").list.last().mean().alias("last"),
    )
    report.add("mnist all arms", f"{seconds:.1f} s; shift and gradient cosines {means.rows()}", means.to_dicts())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args()
    report = Report(arguments.out)
    device = torch.cuda.get_device_name()
    report.add("device", f"{device}, torch {torch.__version__}", device)
    agreement(report)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare_digits(data, PrepareDigitsConfig(source=IdxFolder(path=arguments.data)), scratch=data)
        mnist(report, device, data)
    superposition(report, device)


if __name__ == "__main__":
    main()
