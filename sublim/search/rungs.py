"""A training run made in parts: to a rung and no further, until it is known whether the rest is worth its time.

The part is the very run of the whole: it trains in the whole's scratch folder and leaves its checkpoint there, as a
killed run would. So the next rung, or the whole, goes on from it, and ends with the bytes it would have had in one go.
"""

import shutil
from pathlib import Path
from typing import Any

from sublim.core.progress import listening
from sublim.search.config import RungConfig
from sublim.training.loop import latest_checkpoint
from sublim.training.train import train


class Stopped(Exception):
    """The run has come to its rung."""


def train_rung(out: Path, config: RungConfig, *, scratch: Path, base: Path, data: Path) -> dict[str, Any] | None:
    """Stage: writes update-000016/ and training.jsonl of the run up to `config.stop`.

    Costs the updates since the last checkpoint of the run that is left; all of them where none is.
    """
    kept = scratch / "kept" / f"update-{config.stop:06d}"
    checkpoints = config.run_scratch / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if updates_made(checkpoints) >= config.stop and not kept.is_dir():
        checkpoints = scratch / "own-checkpoints"  # the run is further already, and keeps no weights of before
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
    raise AssertionError("a rung lies before the last update")


def updates_made(checkpoints: Path) -> int:
    """Updates behind the newest checkpoint."""
    newest = latest_checkpoint(checkpoints)
    return int(newest.rpartition("-")[2]) if newest else 0
