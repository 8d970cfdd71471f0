"""The superposition models: gradients, engines, grids, checkpoints and what is refused."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from sublim.core.digest import digest, digest_directory
from sublim.core.errors import UserError
from sublim.toys.streams import stream_key
from sublim.toys.superposition import config as superposition_config
from sublim.toys.superposition.config import Schedule, SuperpositionConfig, SuperpositionFiguresConfig, compiler
from sublim.toys.superposition.figures import draw_superposition
from sublim.toys.superposition.native import NativeEngine, library
from sublim.toys.superposition.results import polysemanticity, rebuilt, superposition
from sublim.toys.superposition.steps import Cohort, TensorEngine, activate, begin, draw
from sublim.toys.superposition.train import experiments, train_superposition
from tests.forked import killed_at

SMALL = SuperpositionConfig(
    features=7, hidden=3, p_active=(0.7, 0.1), ablated=(0, 2), seeds=(0, 1), batch_size=64, steps=60, loss_every=20
)
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
ENGINES = ["torch", pytest.param("native", marks=needs_compiler)]


def run(folder: Path, config: SuperpositionConfig) -> pl.DataFrame:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    train_superposition(out, config, scratch=scratch)
    return pl.read_parquet(out / "rows.parquet")


def sample_cohort(*, distil: bool, features: int = 7, hidden: int = 3) -> tuple[Cohort, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(3, 2, features, hidden + 1, generator=generator) * 0.4
    weight = (0.7 ** torch.arange(features)).expand(3, 2, features).clone()
    weight[:, 1, 2] = 0
    keys = torch.tensor([stream_key(0, "x"), stream_key(0, "x"), stream_key(1, "x")])
    teacher = torch.randn(3, features, hidden + 1, generator=generator) * 0.5 if distil else None
    return Cohort(torch.tensor([1.0, 0.1, 0.3]), keys, weight, 0.7 ** torch.arange(features), teacher), value


def engine_class(engine: str) -> Any:
    return NativeEngine if engine == "native" else functools.partial(TensorEngine, device="cpu")


def loop(cohort: Cohort, value: torch.Tensor, config: SuperpositionConfig, group: int, model: int) -> torch.Tensor:
    """One model trained on its own by autograd and torch's AdamW, on the batches that the engines draw."""
    W = value[group, model, :, :-1].clone().requires_grad_()
    b = value[group, model, :, -1].clone().requires_grad_()
    optimiser = torch.optim.AdamW([W, b], lr=config.lr, weight_decay=config.weight_decay)
    for step, lr in enumerate(config.learning_rates()):
        uniform = draw(cohort.keys[group, None], torch.tensor(step), len(W), config.batch_size)
        x = activate(uniform, cohort.p_active[group, None])[0].T
        target = x
        if cohort.teacher is not None:
            teacher = cohort.teacher[group]
            target = torch.relu(x @ teacher[:, :-1] @ teacher[:, :-1].T + teacher[:, -1])
        loss = (cohort.weight[group, model] * (torch.relu(x @ W @ W.T + b) - target) ** 2).mean(1).sum()
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.cat([W.detach(), b.detach()[:, None]], dim=1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_batched_training_equals_autograd_on_each_model_alone(engine: str, distil: bool, schedule: str) -> None:
    config = SMALL.model_copy(update={"schedule": Schedule(kind=schedule, warmup=5), "engine": engine})  # pyright: ignore[reportArgumentType]
    cohort, value = sample_cohort(distil=distil)
    training = begin(value, config)
    engine_class(engine)(cohort, training, config).run(0, config.steps)
    for group in range(3):
        for model in range(2):
            expected = loop(cohort, value, config, group, model)
            torch.testing.assert_close(training.value[group, model], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_seed_trained_alone_or_in_a_batch_gives_the_same_rows(tmp_path: Path, engine: str) -> None:
    config = SMALL.model_copy(update={"engine": engine})
    together = run(tmp_path / "all", config)
    for seed in config.seeds:
        alone = run(tmp_path / str(seed), config.model_copy(update={"seeds": (seed,), "p_active": (0.1,)}))
        same = together.filter((pl.col("seed") == seed) & (pl.col("p_active") == 0.1))
        assert len(alone) == len(same) == 2 * 5
        for column in ("norm", "cosine", "superposition"):
            torch.testing.assert_close(alone[column].to_torch(), same[column].to_torch(), rtol=1e-5, atol=1e-6)


def test_chunks_of_groups_change_nothing(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"engine": "torch"})
    whole = run(tmp_path / "whole", config)
    chunked = run(tmp_path / "chunked", config.model_copy(update={"chunk": 3, "checkpoint_every": 13}))
    torch.testing.assert_close(whole["norm"].to_torch(), chunked["norm"].to_torch(), rtol=1e-6, atol=1e-7)
    assert digest(config) == digest(config.model_copy(update={"chunk": 3, "checkpoint_every": 13, "threads": 1}))


@needs_compiler
def test_both_engines_draw_the_same_batches_bit_for_bit() -> None:
    keys = torch.tensor([stream_key(3, "a")])
    for p in (1.0, 0.1, 0.0):
        expected = activate(draw(keys, torch.tensor(9), 7, 64), torch.tensor([p]))[0]
        drawn = torch.zeros(7, 64)
        library(3).draw_batch(drawn.data_ptr(), int(keys[0]) % 2**64, 9, drawn.numel(), p)
        assert torch.equal(drawn, expected)


@pytest.mark.parametrize("p", [1.0, 0.3, 0.001])
def test_active_features_are_as_frequent_as_asked_and_uniform(p: float) -> None:
    x = activate(draw(torch.tensor([5]), torch.tensor(0), 20, 2**16), torch.tensor([p]))
    active = x[x > 0]
    n = x.numel()
    assert abs(len(active) - n * p) <= 5 * (n * p * (1 - p)) ** 0.5 + 1
    assert active.max() <= 1
    quarters = torch.histc(active, 4, 0, 1)
    assert (quarters - len(active) / 4).abs().max() < 5 * (len(active) / 4) ** 0.5


def test_steps_and_seeds_share_no_numbers() -> None:
    a, b = (draw(torch.tensor([key]), torch.tensor(step), 20, 64) for key, step in ((1, 0), (1, 1)))
    assert not torch.isin(a, b).any()
    assert stream_key(0, "student data 20") != stream_key(0, "teacher data 20") != stream_key(1, "teacher data 20")


def test_taking_a_feature_out_of_the_loss_leaves_the_unablated_weights_whole() -> None:
    """A detached tensor shares memory: zeroing the student's weights once also changed the full loss."""
    experiment = experiments(SMALL)[0]
    assert (experiment.student_weight == 0).sum(1).tolist() == [1, 1]
    assert (experiment.teacher_weight > 0).all()
    assert experiment.student_weight[:, 1].tolist() == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize("engine", ENGINES)
def test_losses_are_summed_over_the_batch_and_averaged_over_features(engine: str) -> None:
    config = SMALL.model_copy(update={"engine": engine, "steps": 1})
    cohort, value = sample_cohort(distil=True)
    training = begin(value, config)
    (
        NativeEngine(cohort, training, config) if engine == "native" else TensorEngine(cohort, training, config, "cpu")
    ).run(0, 1)
    x = activate(draw(cohort.keys[:1], torch.tensor(0), 7, 64), cohort.p_active[:1])[0].T
    assert cohort.teacher is not None
    outputs = [torch.relu(x @ w[:, :-1] @ w[:, :-1].T + w[:, -1]) for w in (value[0, 1], cohort.teacher[0])]
    full = 0.7 ** torch.arange(7)
    ablated = full.clone()
    ablated[2] = 0
    trained = (ablated * (outputs[0] - outputs[1]) ** 2).sum() / 7
    unablated = (full * (outputs[0] - x) ** 2).sum() / 7
    torch.testing.assert_close(training.trained[0, 1, 0], trained)
    torch.testing.assert_close(training.unablated[0, 1, 0], unablated)


def test_a_summed_loss_moves_rare_features_that_a_mean_would_leave_to_epsilon() -> None:
    """At small p_active a mean over the batch brings gradients down to Adam's epsilon, so the sum is not cosmetic."""
    config = SMALL.model_copy(update={"engine": "torch", "steps": 20, "weight_decay": 0.0})
    cohort, value = sample_cohort(distil=False)
    rare = cohort._replace(p_active=torch.full((3,), 0.003))
    moved: list[float] = []
    for factor in (1.0, 1e-7):
        training = begin(value * torch.tensor([1.0, 1, 1, 0]), config)
        TensorEngine(rare._replace(weight=rare.weight * factor), training, config, "cpu").run(0, 20)
        moved.append(float((training.value - value * torch.tensor([1.0, 1, 1, 0])).norm()))
    assert moved[1] < 0.8 * moved[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_configured_schedule_is_used(tmp_path: Path, engine: str) -> None:
    config = SMALL.model_copy(update={"engine": engine, "seeds": (0,)})
    constant = run(tmp_path / "constant", config)
    linear = run(tmp_path / "linear", config.model_copy(update={"schedule": Schedule(kind="linear")}))
    assert not torch.allclose(constant["norm"].to_torch(), linear["norm"].to_torch(), atol=1e-4)
    rates = config.model_copy(update={"schedule": Schedule(kind="linear", warmup=10), "steps": 110}).learning_rates()
    assert rates[0] == pytest.approx(1e-3 / 11)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(1e-5)


def test_auxiliary_students_learn_only_features_that_their_teacher_never_learned(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"ablated": (), "auxiliary": (2,), "engine": "torch"})
    experiment = experiments(config)[0]
    assert (experiment.teacher_weight > 0).tolist() == [True] * 7 + [False] * 2
    assert (experiment.student_weight[0] > 0).tolist() == [False] * 7 + [True] * 2
    table = run(tmp_path, config)
    student = table.filter(pl.col("role") == "student")
    assert student["feature"].unique().sort().to_list() == list(range(7))
    assert student["feature_norms"].list.len().unique().to_list() == [9]
    assert len(rebuilt(table, config.decay())) == 2 * 7


def test_one_row_per_point_feature_seed_and_role(tmp_path: Path) -> None:
    table = run(tmp_path, SMALL)
    keys = ["experiment", "auxiliary", "p_active", "feature", "seed", "role"]
    assert len(table.unique(keys)) == len(table) == 2 * 2 * 2 * 5
    teacher = table.filter(pl.col("role") == "teacher")
    assert teacher["norm_ratio"].to_list() == pytest.approx([1.0] * len(teacher))
    assert teacher["cosine"].to_list() == pytest.approx([1.0] * len(teacher))
    init = table.filter(pl.col("role") == "init")
    assert (
        init.filter(pl.col("p_active") == 0.7)["norm"].to_list()
        == init.filter(pl.col("p_active") == 0.1)["norm"].to_list()
    )
    losses = pl.read_parquet(tmp_path / "out" / "losses.parquet")
    assert losses["step"].unique().sort().to_list() == [0, 20, 40]
    row = rebuilt(table, SMALL.decay())[0]
    assert row["low"] <= row["norm_ratio"] <= row["high"]
    assert row["excess_norm_ratio"]["estimate"] == pytest.approx(row["norm_ratio"] - row["init_norm_ratio"])


def test_superposition_and_polysemanticity_of_known_matrices() -> None:
    assert superposition(torch.eye(4)).item() == pytest.approx(1)
    pair = torch.tensor([[2.0, 0.0], [-3.0, 0.0], [0.0, 0.0]])
    assert polysemanticity(pair).tolist() == pytest.approx([9, 4, 0])


def test_a_student_rebuilds_its_ablated_feature_when_features_are_in_superposition(tmp_path: Path) -> None:
    """Frequent features are not rebuilt (the student shrinks them, by more than weight decay does); rare ones are, by
    the teacher's initialisation."""
    config = SuperpositionConfig(
        p_active=(1, 0.01), ablated=(4,), seeds=(0, 1, 2), batch_size=256, steps=6000, loss_every=1000
    )
    rows = {row["p_active"]: row for row in rebuilt(run(tmp_path, config), config.decay())}
    assert rows[1]["norm_ratio"] < rows[1]["decayed_init_norm_ratio"] - 0.1
    assert rows[0.01]["norm_ratio"] > rows[0.01]["init_norm_ratio"] + 0.1
    assert rows[0.01]["norm_ratio"] > rows[0.01]["other_norm_ratio"] + 0.1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_feature_that_no_gradient_reaches_shrinks_by_decay_and_by_nothing_else(
    tmp_path: Path, engine: Any, schedule: Any
) -> None:
    """With inputs of zeros nothing is learned: every norm ends at the decayed initialisation's, which without the decay
    taken off would be told as features that shrank."""
    config = SuperpositionConfig(
        **SMALL.model_dump(exclude={"p_active", "steps", "weight_decay", "engine", "schedule"}),
        p_active=(0,),
        steps=400,
        weight_decay=0.3,
        engine=engine,
        schedule=Schedule(kind=schedule),
    )
    table = run(tmp_path, config)
    norms = {role: table.filter(pl.col("role") == role)["norm"].to_numpy() for role in ("init", "student")}
    assert norms["student"] == pytest.approx(config.decay() * norms["init"], rel=1e-4)
    for row in rebuilt(table, config.decay()):
        assert row["excess_norm_ratio"]["estimate"] < -0.05
        assert row["excess_over_decay"]["estimate"] == pytest.approx(0, abs=1e-4)
        assert row["other_excess_over_decay"]["estimate"] == pytest.approx(0, abs=1e-4)
        assert row["decayed_init_norm_ratio"] == pytest.approx(row["norm_ratio"], rel=1e-4)


def test_ten_thousand_steps_of_the_default_decay_leave_nine_tenths() -> None:
    assert SuperpositionConfig().decay() == pytest.approx((1 - 1e-5) ** 10_000)
    assert SuperpositionConfig().decay() == pytest.approx(0.905, abs=5e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("point", ["ablation-0-teachers:40", "ablation-0-students:20"])
def test_a_killed_sweep_resumes_to_the_same_bytes(tmp_path: Path, engine: str, point: str) -> None:
    config = SMALL.model_copy(update={"engine": engine, "checkpoint_every": 20})
    run(tmp_path / "whole", config)
    killed = tmp_path / "killed"
    (killed / "scratch").mkdir(parents=True)
    (killed / "first").mkdir()
    killed_at(f"superposition:{point}", train_superposition, killed / "first", config, scratch=killed / "scratch")
    assert (killed / "scratch" / f"{point.split(':')[0]}.safetensors").exists()
    run(killed, config)
    assert digest_directory(killed / "out") == digest_directory(tmp_path / "whole" / "out")


def test_a_rerun_gives_the_same_bytes_figures_included(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"auxiliary": (2,)})
    digests: set[str] = set()
    for name in ("first", "second"):
        run(tmp_path / name, config)
        figures = tmp_path / name / "out" / "figures"
        figures.mkdir()
        draw_superposition(
            figures, SuperpositionFiguresConfig(panels=(0.1,)), scratch=tmp_path, toy=tmp_path / name / "out"
        )
        assert len(list(figures.iterdir())) == 2 * 4
        digests.add(digest_directory(tmp_path / name / "out"))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ablated": (20,)}, "features 0 to 19"),
        ({"auxiliary": (21,)}, "at most as many"),
        ({"p_active": (1.5,)}, "less than or equal to 1"),
        ({"p_active": (-0.1,)}, "greater than or equal to 0"),
        ({"seeds": ()}, "nothing to train"),
        ({"ablated": (), "auxiliary": ()}, "nothing to train"),
        ({"ablated": (1, 1)}, "twice"),
        ({"batch_size": 100}, "multiple of 32"),
    ],
)
def test_impossible_grids_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SuperpositionConfig.model_validate(wrong)


def test_the_native_engine_says_what_to_do_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert SuperpositionConfig().resolved().engine in ("cuda", "torch")
    library.cache_clear()
    with pytest.raises(UserError, match="engine=torch"):
        library(4)


def test_cuda_asked_for_without_a_device_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match="no CUDA device"):
        run(tmp_path, SMALL.model_copy(update={"engine": "cuda"}))


def test_the_config_needs_no_torch() -> None:
    code = f"import sys, {superposition_config.__name__}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
def test_the_cuda_graph_agrees_with_the_cpu(tmp_path: Path) -> None:
    cpu = run(tmp_path / "cpu", SMALL.model_copy(update={"engine": "torch"}))
    cuda = run(tmp_path / "cuda", SMALL.model_copy(update={"engine": "cuda", "checkpoint_every": 17}))
    torch.testing.assert_close(cpu["norm"].to_torch(), cuda["norm"].to_torch(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        *(frame.filter(pl.col("role") == "student")["trained_loss"].to_torch() for frame in (cpu, cuda)),
        rtol=1e-3,
        atol=1e-4,
    )
