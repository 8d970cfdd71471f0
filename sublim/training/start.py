"""The start: a base tuned on lists made by rule, written as a whole model from which all others of a study begin."""

import shutil
from pathlib import Path
from typing import Any

from sublim.files.jsonl import read_jsonl
from sublim.models.export import export_merged
from sublim.training.checkpoints import checkpoint
from sublim.training.config import TrainConfig
from sublim.training.train import train


def make_start(out: Path, config: TrainConfig, *, scratch: Path, base: Path, data: Path) -> dict[str, Any]:
    """Stage: trains `base` on data/rows.jsonl and writes the whole model, with the files of a prepared base.

    What it writes can stand wherever a base does. Only the last update's weights are written; an adapter is merged.
    Notes are those of training, with its `losses` in nats a token. An interrupted run resumes from the last checkpoint
    in `scratch`.
    """
    trained = scratch / "trained"
    shutil.rmtree(trained, ignore_errors=True)
    trained.mkdir()
    notes = train(trained, config.model_copy(update={"keep": ()}), scratch=scratch, base=base, data=data)
    export_merged(out, base=base, weights=checkpoint(trained), name="start")
    losses = [row["loss"] for row in read_jsonl(trained / "training.jsonl")]
    return {**(notes or {}), "losses": losses}
