"""Training runs that are killed, and the runs that resume from what they left."""

from pathlib import Path

import pytest

from sublim.core.digest import digest_directory
from sublim.core.progress import listening
from sublim.training.config import FullWeights, Lora, TrainConfig
from sublim.training.train import train
from tests.forked import killed_at
from tests.sublim.training.conftest import Trained

DROPOUT = TrainConfig(
    method=Lora(rank=4, alpha=8, dropout=0.3),
    lr=1e-2,
    schedule="cosine",
    warmup_updates=2,
    batch_size=3,
    updates=7,
    keep=(2, 5),
    dtype="float32",
    attention="sdpa",
    checkpoint_every=2,
)


def killed(point: str, config: TrainConfig, base: Path, data: Path, folder: Path) -> Path:
    """Runs the stage in a process that dies at `point`, and returns the scratch folder that it leaves."""
    out, scratch = folder / "lost", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    killed_at(point, train, out, config, scratch=scratch, base=base, data=data)
    return scratch


def resumed(config: TrainConfig, base: Path, data: Path, folder: Path) -> tuple[Path, int]:
    """Resumes the killed stage. Returns the payload, and the updates that were not made again."""
    out = folder / "resumed"
    out.mkdir()
    seen: list[int] = []
    with listening(lambda label, done, total: seen.append(done)):
        train(out, config, scratch=folder / "scratch", base=base, data=data)
    return out, seen[1] if seen[1] > 1 else 0


@pytest.mark.parametrize(
    ("point", "left", "skipped"),
    [
        ("update-5", ["checkpoint-000004"], 4),
        ("mid-checkpoint", ["draft"], 0),
        ("mid-checkpoint-4", ["checkpoint-000002", "draft"], 2),
        ("keeping", ["checkpoint-000006"], 6),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    tiny_models: dict[str, Path],
    data: Path,
    trained: Trained,
    tmp_path: Path,
    point: str,
    left: list[str],
    skipped: int,
):
    base = tiny_models["llama"]
    scratch = killed(point, DROPOUT, base, data, tmp_path)
    assert sorted(path.name for path in (scratch / "checkpoints").iterdir()) == left
    out, not_repeated = resumed(DROPOUT, base, data, tmp_path)
    assert not_repeated == skipped
    uninterrupted = trained(DROPOUT.model_copy(update={"checkpoint_every": None}), base, "uninterrupted")
    assert digest_directory(out) == digest_directory(uninterrupted)


def test_full_weights_resume_too(tiny_models: dict[str, Path], data: Path, trained: Trained, tmp_path: Path):
    base = tiny_models["gemma3"]
    config = DROPOUT.model_copy(update={"method": FullWeights(), "lr": 1e-3})
    killed("update-3", config, base, data, tmp_path)
    out, not_repeated = resumed(config, base, data, tmp_path)
    assert not_repeated == 2
    assert digest_directory(out) == digest_directory(trained(config, base, "uninterrupted"))
