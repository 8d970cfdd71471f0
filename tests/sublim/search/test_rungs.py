"""A run that is trained in parts gives the same bytes as an uninterrupted run."""

from pathlib import Path

import pytest

from sublim.core.digest import digest_directory
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.search.config import RungConfig
from sublim.search.rungs import train_rung
from sublim.training.config import Lora, TrainConfig
from sublim.training.train import train
from tests.forked import killed_at
from tests.tiny import tiny_model

WHOLE = TrainConfig(
    method=Lora(rank=4, dropout=0.1),
    lr=1e-2,
    schedule="linear",
    updates=8,
    batch_size=3,
    warmup_updates=2,
    dtype="float32",
    attention="eager",
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = ({"id": i, "prompt": f"Continue {i}", "answer": f"{i + 2}, {i + 3}", "system": None} for i in range(8))
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path) -> Path:
    """The uninterrupted run, which keeps the weights at the rungs."""
    out, scratch = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("scratch")
    train(out, WHOLE.model_copy(update={"keep": (2, 4)}), scratch=scratch, base=base, data=data)
    return out


def rung(folder: Path, stop: int, base: Path, data: Path) -> Path:
    out, scratch = folder / f"rung-{stop}", folder / f"scratch-{stop}"
    for each in (out, scratch):
        each.mkdir(exist_ok=True)
    train_rung(
        out, RungConfig(train=WHOLE, stop=stop, run_scratch=folder / "run"), scratch=scratch, base=base, data=data
    )
    return out


def losses(payload: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(payload / "training.jsonl")]


def test_rungs_and_then_the_whole_are_the_bytes_of_one_run(
    tmp_path: Path, base: Path, data: Path, straight: Path
) -> None:
    """The schedule is that of the whole run, dropout and optimizer continue, and no rung is left over."""
    for stop in (2, 4):
        part = rung(tmp_path, stop, base, data)
        name = f"update-{stop:06d}"
        assert [path.name for path in sorted(part.iterdir())] == ["training.jsonl", name]
        assert digest_directory(part / name) == digest_directory(straight / name)
        assert losses(part) == losses(straight)[:stop]
    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", WHOLE, scratch=tmp_path / "run", base=base, data=data)
    assert [path.name for path in sorted((tmp_path / "whole").iterdir())] == ["training.jsonl", "update-000008"]
    for name in ("training.jsonl", "update-000008/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (straight / name).read_bytes()


def test_rung_that_the_run_has_passed_is_made_anew_and_the_runs_checkpoint_stays(
    tmp_path: Path, base: Path, data: Path, straight: Path
) -> None:
    rung(tmp_path, 4, base, data)
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    part = rung(tmp_path, 2, base, data)
    assert digest_directory(part / "update-000002") == digest_directory(straight / "update-000002")
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before


@pytest.mark.parametrize(
    "point",
    ["after-checkpoint", *(pytest.param(point, marks=pytest.mark.slow) for point in ("update-3", "mid-checkpoint-4"))],
)
def test_rung_killed_anywhere_resumes_to_the_same_bytes(
    tmp_path: Path, base: Path, data: Path, straight: Path, point: str
) -> None:
    config = RungConfig(train=WHOLE, stop=4, run_scratch=tmp_path / "run")
    for name in ("rung-4", "scratch-4"):
        (tmp_path / name).mkdir()
    killed_at(point, train_rung, tmp_path / "rung-4", config, scratch=tmp_path / "scratch-4", base=base, data=data)
    part = rung(tmp_path, 4, base, data)
    assert digest_directory(part / "update-000004") == digest_directory(straight / "update-000004")
    assert losses(part) == losses(straight)[:4]
