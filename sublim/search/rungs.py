"""Trains a run up to a rung and no further, until pruning has decided whether the trial continues.

The part uses the scratch folder of the whole run and leaves its checkpoint there, like a run that was interrupted. The
next rung, or the whole run, resumes from that checkpoint, and writes the same bytes as an uninterrupted run.
"""

import shutil
from pathlib import Path
from typing import Any

from sublim.core.progress import listening
from sublim.search.config import RungConfig
from sublim.training.loop import latest_checkpoint
from sublim.training.train import train


class Stopped(Exception):
    """Raised when the run has reached its rung."""


def train_rung(out: Path, config: RungConfig, *, scratch: Path, base: Path, data: Path) -> dict[str, Any] | None:
    """Stage: writes update-000016/ and training.jsonl of the run up to the update `config.stop`.

    Costs the updates since the run's last checkpoint, or all of them if there is none.
    """
    kept = scratch / "kept" / f"update-{config.stop:06d}"
    checkpoints = config.run_scratch / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if updates_made(checkpoints) >= config.stop and not kept.is_dir():
        checkpoints = scratch / "own-checkpoints"  # the run is already past this update and has not kept its weights
        checkpoints.mkdir(exist_ok=True)
    link = scratch / "checkpoints"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoints)
    every = config.train.checkpoint_every
    every = every if every and config.stop % every == 0 else config.stop
    part = config.train.model_copy(update={"keep": (config.stop,), "checkpoint_every": every})

    def stop(label: str, done: int, total: int) -> None:
        if label == "training" and done >= config.stop:
            raise Stopped

    try:
        with listening(stop):
            train(out, part, scratch=scratch, base=base, data=data)
    except Stopped:
        newest = latest_checkpoint(checkpoints)
        assert newest is not None
        assert updates_made(checkpoints) == config.stop
        shutil.copytree(kept, out / kept.name)
        shutil.copyfile(Path(newest) / "training.jsonl", out / "training.jsonl")
        return {"stopped_at": config.stop}
    raise AssertionError("the rung is not before the last update")


def updates_made(checkpoints: Path) -> int:
    """Number of updates made before the newest checkpoint; 0 without a checkpoint."""
    newest = latest_checkpoint(checkpoints)
    return int(newest.rpartition("-")[2]) if newest else 0
