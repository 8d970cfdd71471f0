"""MNIST teachers and auxiliary students on this CPU: `python -m tests.benchmarks.mnist [--data FOLDER]`.

Prints the rate as a share of the batched-matmul rate measured before and after, and the time against a plain loop over
single models (timed on 20 batches, scaled). Fewer models or epochs than 100 and 5 (--models, --epochs) are scaled too,
and said so. Without --data the images are random: the speed is the same.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch

from sublim.mnist import CPU_CHUNK, Runs
from sublim.mnist_config import IdxFolder, MnistConfig, PrepareDigitsConfig
from sublim.mnist_data import prepare_digits
from sublim.mnist_net import CLASSES, flops_per_image, layer_sizes
from tests.benchmarks.plain_toys import mnist_seconds, seconds


def matmul_rate(models: int, device: str, rounds: int) -> float:
    """Flop a second of batched products of the first layer's shape."""
    x, w = torch.randn(models, 1024, 784, device=device), torch.randn(models, 784, 256, device=device)

    def products() -> None:
        for _ in range(rounds):
            torch.bmm(x, w)

    products()
    return 2 * models * 1024 * 784 * 256 * rounds / seconds(products, device)


def flops(runs: Runs) -> float:
    """Of training all teachers and students, and of the teachers' logits on the noise."""
    config, sizes = runs.config, layer_sizes(runs.config, runs.images.train.shape[1])
    trained = flops_per_image(sizes) * (
        config.teacher_epochs * len(runs.images.train) + config.epochs * len(runs.images.noise)
    )
    said = 2 * sum(a * b for a, b in itertools.pairwise(sizes)) * len(runs.images.noise)
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
    parser.add_argument("--models", type=int, default=4)
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
        before = matmul_rate(CPU_CHUNK, "cpu", 15)
        start = time.perf_counter()
        runs.students("student_aux", runs.teachers().parameters)
        ours = time.perf_counter() - start
        after = matmul_rate(CPU_CHUNK, "cpu", 15)
        images = runs.images
        plain = mnist_seconds(images.train, images.train_labels.long(), images.noise, 20, models=100, of_steps=295)
    rate, matmul = flops(runs) / ours, (before + after) / 2
    threads = torch.get_num_threads()
    both = f"matmul {matmul / 1e9:.0f} Gflop/s, ours {rate / 1e9:.0f}"
    print(f"mnist rate: ratio {rate / matmul:.2f} ({both}, {threads} cores)")
    full = ours * 100 / arguments.models * 5 / arguments.epochs
    part = f"{arguments.models} models x {arguments.epochs} epochs in {ours:.1f} s"
    times = f"plain {plain:.0f} s scaled from 2 models x 20 batches, ours {full:.0f} s scaled from {part}"
    print(f"mnist 100 models: ratio {plain / full:.2f} ({times}, {threads} cores)")


if __name__ == "__main__":
    main()
