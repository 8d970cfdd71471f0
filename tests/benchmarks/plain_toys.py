"""The toy models as one writes them for a single model: autograd, torch's optimiser, one after another."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """x̂ = relu(W Wᵀ x + b)."""

    def __init__(self, features: int = 20, hidden: int = 5):
        super().__init__()
        self.W = nn.Parameter(torch.empty(features, hidden))
        nn.init.xavier_normal_(self.W)
        self.b = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W @ self.W.T + self.b)


def train_autoencoder(
    p_active: float, steps: int, device: str, *, teacher: Autoencoder | None = None, ablated: int | None = None
) -> Autoencoder:
    """Trains one teacher, or one student of `teacher` without the ablated feature in its loss."""
    model = Autoencoder().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    weights = 0.7 ** torch.arange(20, device=device)
    if ablated is not None:
        weights[ablated] = 0
    for _ in range(steps):
        x = torch.rand(1024, 20, device=device)
        x = torch.where(torch.rand(1024, 20, device=device) <= p_active, x, 0.0)
        with torch.no_grad():
            target = x if teacher is None else teacher(x)
        loss = (weights * (model(x) - target) ** 2).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def classifier(pixels: int = 784, width: int = 256, logits: int = 13) -> nn.Module:
    """784-256-256-13 with ReLU."""
    layers = [nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, logits)]
    return nn.Sequential(*layers)


def train_classifier(images: Tensor, loss_at: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int) -> nn.Module:
    """Trains one network for `steps` batches of 1,024 with Adam; `loss_at` takes logits, images and their indices."""
    model = classifier(images.shape[1]).to(images.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    rows: list[Tensor] = []
    for _ in range(steps):
        if not rows:
            rows = list(torch.randperm(len(images), device=images.device).split(1024))
        index = rows.pop()
        x = images[index]
        loss = loss_at(model(x), x, index)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of `work`, the device's queue emptied before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sweep_seconds(device: str, steps: int, *, points: int, seeds: int, of_steps: int) -> float:
    """Time of a whole sweep by the plain loop, from one teacher and two students timed for `steps` steps each."""
    train_autoencoder(0.5, 20, device)
    teachers: list[Autoencoder] = []
    teacher = seconds(lambda: teachers.append(train_autoencoder(0.5, steps, device)), device)
    students = [
        seconds(lambda i=i: train_autoencoder(0.5, steps, device, teacher=teachers[0], ablated=i), device)
        for i in (0, 4)
    ]
    return points * seeds * (teacher + 5 * sum(students) / 2) * of_steps / steps


def mnist_seconds(images: Tensor, labels: Tensor, noise: Tensor, steps: int, *, models: int, of_steps: int) -> float:
    """Time of `models` teachers and auxiliary students by the plain loop, from one of each on `steps` batches."""
    device = images.device.type

    def task(logits: Tensor, x: Tensor, index: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[:, :10], labels[index])

    teacher = train_classifier(images, task, 3)

    def distil(logits: Tensor, x: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad():
            said = teacher(x)[:, 10:].log_softmax(-1)
        return nn.functional.kl_div(logits[:, 10:].log_softmax(-1), said, log_target=True, reduction="batchmean")

    train_classifier(noise, distil, 3)
    each = seconds(lambda: train_classifier(images, task, steps), device)
    each += seconds(lambda: train_classifier(noise, distil, steps), device)
    return models * each * of_steps / steps
