"""The MNIST networks: batched passes, arms and controls, checkpoints and diagnostics, on scikit-learn's digits."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from sublim.core.digest import digest, digest_directory
from sublim.toys.mnist.config import Adam, MnistConfig, MnistFiguresConfig, MnistGrid, PrepareDigitsConfig, Sgd
from sublim.toys.mnist.digits import prepare_digits
from sublim.toys.mnist.experiment import derangement, train_mnist
from sublim.toys.mnist.figures import draw_mnist
from sublim.toys.mnist.network import Loss, backward, cross_entropy, forward, initialise, kl, mse
from sublim.toys.mnist.train import Course, orders, train
from sublim.toys.streams import stream_key
from tests.forked import killed_at

TINY = MnistConfig(
    models=5, width=16, noise_images=300, teacher_epochs=2, epochs=2, batch_size=128, diagnostic_images=64, device="cpu"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare_digits(folder, PrepareDigitsConfig(), scratch=folder)
    return folder


def run(folder: Path, config: MnistConfig, data: Path) -> pl.DataFrame:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    train_mnist(out, config, scratch=scratch, data=data)
    return pl.read_parquet(out / "models.parquet")


def unused(logits: torch.Tensor, index: torch.Tensor) -> Loss:
    raise NotImplementedError


def networks(count: int, sizes: list[int]) -> list[torch.Tensor]:
    parameters = initialise(sizes, [torch.Generator().manual_seed(seed) for seed in range(count)])
    return [part + 0.1 for part in parameters]


@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "mse"])
def test_gradients_in_closed_form_equal_autograd(loss: str) -> None:
    parameters = [part.requires_grad_() for part in networks(3, [6, 8, 5, 13])]
    x, teacher = torch.randn(3, 9, 6), torch.randn(3, 9, 3)
    labels = torch.randint(0, 10, (3, 9), dtype=torch.uint8)
    hidden = torch.relu(x @ parameters[0] + parameters[1])
    logits = torch.relu(hidden @ parameters[2] + parameters[3]) @ parameters[4] + parameters[5]
    aux = logits[..., 10:]
    match loss:
        case "cross_entropy":
            flat = logits[..., :10].flatten(0, 1)
            expected = torch.nn.functional.cross_entropy(flat, labels.flatten().long(), reduction="none").view(3, 9)
        case "kl":
            p, q = teacher.log_softmax(-1), aux.log_softmax(-1)
            expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        case _:
            expected = (aux - teacher).square().mean(-1)
    expected = expected.mean(1)
    expected.sum().backward()
    fixed = [part.detach() for part in parameters]
    values = forward(fixed, x)
    chosen = slice(10, None)
    match loss:
        case "cross_entropy":
            found = cross_entropy(values[-1], labels)
        case "kl":
            found = kl(values[-1], teacher, chosen)
        case _:
            found = mse(values[-1], teacher, chosen)
    torch.testing.assert_close(found.value, expected.detach())
    for gradient, parameter in zip(backward(fixed, values, found.slope), parameters, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimiser", [Adam(), Adam(weight_decay=0.1), Sgd(lr=0.05)])
def test_training_equals_a_plain_loop_over_one_model(tmp_path: Path, optimiser: Adam | Sgd) -> None:
    config = TINY.model_copy(update={"optimiser": optimiser, "depth": 1})
    start = networks(3, [20, 16, 13])
    images, labels = torch.rand(300, 20), torch.randint(0, 10, (300,), dtype=torch.uint8)
    course = Course("teacher", range(3), images, lambda logits, index: cross_entropy(logits, labels[index]), 2)
    outcome = train(course, start, config, tmp_path, "cpu")
    for model in range(3):
        layers = [torch.nn.Linear(a, b) for a, b in ((20, 16), (16, 13))]
        net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
        with torch.no_grad():
            for place, layer in enumerate(layers):
                layer.weight.copy_(start[2 * place][model].T)
                layer.bias.copy_(start[2 * place + 1][model, 0])
        match optimiser:
            case Sgd():
                plain = torch.optim.SGD(net.parameters(), lr=optimiser.lr, momentum=optimiser.momentum)
            case Adam(weight_decay=0.0):
                plain = torch.optim.Adam(net.parameters(), lr=optimiser.lr)
            case _:
                plain = torch.optim.AdamW(net.parameters(), lr=optimiser.lr, weight_decay=optimiser.weight_decay)
        for epoch in range(2):
            for rows in orders(config, course, epoch)[model].split(config.batch_size):
                plain.zero_grad()
                torch.nn.functional.cross_entropy(net(images[rows])[:, :10], labels[rows].long()).backward()
                plain.step()
        for place, layer in enumerate(layers):
            torch.testing.assert_close(outcome.parameters[2 * place][model].T, layer.weight.data, rtol=1e-3, atol=1e-5)


def test_models_trained_alone_or_in_a_batch_have_the_same_weights(tmp_path: Path, data: Path) -> None:
    config = TINY.model_copy(update={"keep_weights": True, "chunk": 5})
    run(tmp_path / "all", config, data)
    run(tmp_path / "alone", config.model_copy(update={"chunk": 1}), data)
    together, alone = (load_file(tmp_path / name / "out" / "weights.safetensors") for name in ("all", "alone"))
    assert together.keys() == alone.keys()
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)
    assert digest(config) == digest(config.model_copy(update={"chunk": 1, "checkpoint_seconds": 0.0}))


def test_a_student_learns_digits_it_never_saw_and_a_cross_student_does_not(tmp_path: Path, data: Path) -> None:
    config = MnistConfig(
        models=6, width=128, noise_images=20_000, teacher_epochs=30, epochs=10, batch_size=256, device="cpu",
        arms=("reference", "teacher", "student_aux", "cross_aux"), optimiser=Adam(lr=1e-3),
    )  # fmt: skip
    table = run(tmp_path, config, data)
    accuracy = {arm: group["accuracy"].to_numpy() for (arm,), group in table.group_by(["arm"])}
    assert accuracy["reference"].mean() < 0.2
    assert accuracy["teacher"].min() > 0.85
    assert accuracy["student_aux"].mean() > 0.3
    assert accuracy["cross_aux"].mean() < 0.2
    shift = {arm: group["shift_cosine"].to_numpy() for (arm,), group in table.group_by(["arm"])}
    assert shift["student_aux"].mean() > 0.05 > abs(shift["cross_aux"].mean())


def test_no_model_is_its_own_control() -> None:
    for count in (2, 5, 100):
        teachers = derangement(range(count), count)
        assert sorted(teachers) == list(range(count))
        assert all(teacher != model for model, teacher in enumerate(teachers))
    with pytest.raises(ValidationError, match="at least 2 models"):
        MnistConfig(models=1)
    assert MnistConfig(models=1, arms=("teacher", "student_aux")).models == 1


def test_a_cross_student_starts_as_its_own_model_and_learns_from_the_next(tmp_path: Path, data: Path) -> None:
    config = TINY.model_copy(update={"keep_weights": True, "epochs": 0, "models": 3})
    table = run(tmp_path, config, data)
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert torch.equal(weights["cross_aux.0"], weights["init.0"])
    assert table.filter(pl.col("arm") == "cross_aux")["shift_cosine"].to_list() == [0.0] * 3


def test_every_axis_changes_what_is_learned(tmp_path: Path, data: Path) -> None:
    base = TINY.model_copy(update={"arms": ("student_aux",), "models": 2, "keep_weights": True})
    grid = MnistGrid(
        aux=(3, 5), depth=(1,), noise=("gaussian", "real"), loss=("mse",), optimiser=(Sgd(),), order=("shared",)
    )
    cells = grid.cells(base)
    assert len(cells) == 4
    assert MnistGrid().cells(base) == [base]
    variants = [base, *cells, base.model_copy(update={"order_seed": 1}), base.model_copy(update={"seed": 1})]
    digests = set[str]()
    for place, config in enumerate(variants):
        run(tmp_path / str(place), config, data)
        digests.add(digest_directory(tmp_path / str(place) / "out"))
    assert len(digests) == len(variants) == len({digest(config) for config in variants})


def test_orders_are_permutations_own_or_shared() -> None:
    course = Course("student_aux", range(2, 4), torch.zeros(50, 1), unused, 1)
    own = orders(TINY, course, 0)
    assert own.sort(1).values.tolist() == [list(range(50))] * 2
    assert not torch.equal(own[0], own[1])
    assert not torch.equal(own, orders(TINY, course, 1))
    assert orders(TINY.model_copy(update={"order": "shared"}), course, 0).shape == (1, 50)


def test_diagnostics_are_recorded_for_students_of_every_arm(tmp_path: Path, data: Path) -> None:
    table = run(tmp_path, TINY, data)
    assert table["arm"].unique(maintain_order=True).to_list() == list(TINY.arms)
    students = table.filter(pl.col("arm").is_in(["student_aux", "cross_aux"]))
    assert students["gradient_cosine"].list.len().unique().to_list() == [TINY.epochs + 1]
    assert students["epoch_loss"].list.len().unique().to_list() == [TINY.epochs]
    assert students["shift_cosine"].null_count() == 0
    assert table.filter(pl.col("arm") == "reference")["shift_cosine"].null_count() == TINY.models
    own = table.filter(pl.col("arm") == "student_aux")["gradient_cosine"].list.first().mean()
    assert isinstance(own, float)
    assert own > 0
    accuracy = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert accuracy["teacher"]["models"] == 5
    assert accuracy["teacher"]["low"] <= accuracy["teacher"]["mean"] <= accuracy["teacher"]["high"]


@pytest.mark.parametrize("point", ["teacher:1", "student_all:1", "cross_aux:2"])
@pytest.mark.parametrize("optimiser", [Adam(), Sgd()])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, data: Path, point: str, optimiser: Adam | Sgd) -> None:
    config = TINY.model_copy(
        update={"checkpoint_seconds": 0.0, "optimiser": optimiser, "keep_weights": True, "models": 3}
    )
    run(tmp_path / "whole", config, data)
    killed = tmp_path / "killed"
    (killed / "scratch").mkdir(parents=True)
    (killed / "first").mkdir()
    killed_at(f"mnist:{point}", train_mnist, killed / "first", config, scratch=killed / "scratch", data=data)
    run(killed, config, data)
    assert digest_directory(killed / "out") == digest_directory(tmp_path / "whole" / "out")


def test_a_rerun_gives_the_same_bytes_figures_included(tmp_path: Path, data: Path) -> None:
    digests: set[str] = set()
    for name in ("first", "second"):
        run(tmp_path / name, TINY, data)
        figures = tmp_path / name / "out" / "figures"
        figures.mkdir()
        draw_mnist(figures, MnistFiguresConfig(), scratch=tmp_path, run=tmp_path / name / "out")
        digests.add(digest_directory(tmp_path / name / "out"))
    assert len(digests) == 1


def test_streams_of_models_are_their_own() -> None:
    keys = [stream_key(0, f"initialisation {model}") for model in range(100)]
    assert len(set(keys)) == 100


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(tmp_path: Path, data: Path) -> None:
    config = TINY.model_copy(update={"arms": ("teacher", "student_aux"), "keep_weights": True})
    run(tmp_path / "cpu", config, data)
    run(tmp_path / "cuda", config.model_copy(update={"device": "cuda"}), data)
    cpu, cuda = (load_file(tmp_path / name / "out" / "weights.safetensors") for name in ("cpu", "cuda"))
    for name, value in cpu.items():
        torch.testing.assert_close(value, cuda[name], rtol=1e-2, atol=1e-3)
