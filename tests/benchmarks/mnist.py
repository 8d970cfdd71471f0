"""MNIST teachers and auxiliary students on this CPU: `python -m tests.benchmarks.mnist [--data FOLDER]`.

Prints the rate as a share of the batched-matmul rate measured in between, and the time against a plain loop over
single models (timed on 20 batches, scaled). Fewer models or epochs than 100 and 5 (--models, --epochs) are scaled too,
and said so. Without --data the images are random: the speed is the same.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sublim.core.progress import listening
from sublim.toys.mnist.config import IdxFolder, MnistConfig, PrepareDigitsConfig
from sublim.toys.mnist.digits import prepare_digits
from sublim.toys.mnist.experiment import CPU_CHUNK, Runs
from sublim.toys.mnist.network import CLASSES, layer_sizes
from tests.benchmarks.plain_toys import mnist_seconds, seconds


def matmul_rate(models: int, device: str, rounds: int) -> float:
    """Flop a second of batched products of the first layer's shape."""
    x, w = torch.randn(models, 1024, 784, device=device), torch.randn(models, 784, 256, device=device)

    def products() -> None:
        for _ in range(rounds):
            torch.bmm(x, w)

    products()
    return 2 * models * 1024 * 784 * 256 * rounds / seconds(products, device)


def cost() -> np.ndarray:
    """Seconds by the clock, and of all cores together."""
    return np.array([time.perf_counter(), time.process_time()])


class Products:
    """Batched products of the first layer's shape, timed a few at a time."""

    def __init__(self, models: int):
        self.x, self.w = torch.randn(models, 1024, 784), torch.randn(models, 784, 256)
        self.spent, self.flops = np.zeros(2), 0.0

    def time(self, rounds: int = 6) -> None:
        started = cost()
        for _ in range(rounds):
            torch.bmm(self.x, self.w)
        self.spent += cost() - started
        self.flops += 2.0 * len(self.x) * 1024 * 784 * 256 * rounds


def flops(runs: Runs) -> float:
    """Of training all teachers and students, and of the teachers' logits on the noise."""
    config, sizes = runs.config, layer_sizes(runs.config, runs.images.train.shape[1])
    products = [a * b for a, b in itertools.pairwise(sizes)]
    images = config.teacher_epochs * len(runs.images.train) + config.epochs * len(runs.images.noise)
    trained = 2 * (3 * sum(products) - products[0]) * images
    said = 2 * sum(products) * len(runs.images.noise)
    return config.models * float(trained + said)


def write_random(folder: Path) -> None:
    """Random images of MNIST's shape, where the real ones are not at hand."""
    from safetensors.torch import save_file

    tensors = {
        f"{part}_{kind}": torch.randint(0, high, shape, dtype=torch.uint8)
        for part, n in (("train", 60_000), ("test", 10_000))
        for kind, high, shape in (("images", 256, (n, 28, 28)), ("labels", CLASSES, (n,)))
    }
    save_file(tensors | {"brightest": torch.tensor([255], dtype=torch.uint8)}, folder / "digits.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.data is None:
            write_random(folder)
        else:
            prepare_digits(folder, PrepareDigitsConfig(source=IdxFolder(path=arguments.data)), scratch=folder)
        config = MnistConfig(
            models=arguments.models,
            teacher_epochs=arguments.epochs,
            epochs=arguments.epochs,
            diagnostic_images=0,
            device="cpu",
        )
        runs = Runs(config, folder, folder)
        products = Products(CPU_CHUNK)
        started = cost()
        # Every epoch of every chunk reports progress; matmuls are timed then, so that both see the same machine.
        with listening(lambda label, done, total: products.time()):
            runs.students("student_aux", runs.teachers().parameters)
        both = cost() - started
        ours = both - products.spent
        images = runs.images
        plain = mnist_seconds(images.train, images.train_labels.long(), images.noise, 20, models=100, of_steps=295)
    work, threads = flops(runs), torch.get_num_threads()
    rate, matmul = work / ours, products.flops / products.spent
    print(
        f"mnist rate: ratio {rate[0] / matmul[0]:.2f} (matmul {matmul[0] / 1e9:.0f} Gflop/s, ours {rate[0] / 1e9:.0f};"
        f" per core-second {matmul[1] / 1e9:.0f} and {rate[1] / 1e9:.0f}: ratio {rate[1] / matmul[1]:.2f};"
        f" {threads} threads)"
    )
    full = ours[0] * 100 / arguments.models * 5 / arguments.epochs
    part = f"{arguments.models} models x {arguments.epochs} epochs in {ours[0]:.1f} s"
    times = f"plain {plain:.0f} s scaled from 2 models x 20 batches, ours {full:.0f} s scaled from {part}"
    print(f"mnist 100 models: ratio {plain / full:.2f} ({times}, {threads} threads)")


if __name__ == "__main__":
    main()
