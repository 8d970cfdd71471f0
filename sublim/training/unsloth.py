"""The trainer `unsloth`: trains adapters with unsloth's kernels, on a GPU and in a separate process.

On import unsloth rewrites classes of transformers, peft and trl. In a separate process, which ends with the training,
this affects nothing else.
"""

import json
import os
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sublim.core.errors import UserError
from sublim.core.interpreter import python
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl
from sublim.models.opening import forget_base, release_other_models
from sublim.training.config import TrainConfig, no_unsloth
from sublim.training.loop import log_losses


def train(out: Path, config: TrainConfig, *, scratch: Path, base: Path, data: Path) -> dict[str, Any]:
    """Trains like `sublim.training.train.train`, with the same files and notes; also resumes from its checkpoints.

    A student of the bundled model with 64 updates takes 37 to 54 s and 3.3 GiB on an H200 that runs three others (with
    the trainer trl 9 to 27 s and 3.7 GiB; effect and losses agree within .02 nats). On an idle GPU, 33 s pass before
    the first update. unsloth's kernels need a bfloat16 base; with a float32 one (`frozen_base`) it computes as peft
    does.
    """
    if why := no_unsloth():
        raise UserError(f"the unsloth trainer cannot run here: {why}; or set trainer to trl")
    forget_base()
    for forget in release_other_models:
        forget()
    folders = {"out": out, "scratch": scratch, "base": base, "data": data}
    job = {"config": config.resolved().model_dump(mode="json"), "folders": folders}
    read, write = os.pipe()
    environment = {
        # Keeps unsloth from rewriting trl's trainers, which are not used; with a GPU it has no other effect.
        "UNSLOTH_ALLOW_CPU": "1",
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "compiled"),
    }
    with subprocess.Popen(
        [*python(), "-m", "sublim.training.unsloth_process", str(write)],
        stdin=subprocess.PIPE,
        pass_fds=(write,),
        encoding="utf-8",
        env={**os.environ, **environment},
    ) as process:
        os.close(write)
        assert process.stdin is not None
        process.stdin.write(json.dumps(job, default=str))
        process.stdin.close()
        with os.fdopen(read, encoding="utf-8") as events:
            notes = followed(events)
    if notes is None:
        raise RuntimeError(f"unsloth's process ended with code {process.returncode} and without a result")
    log_losses(list(read_jsonl(out / "training.jsonl")))  # the log of that process is not kept
    return notes


def followed(events: Iterable[str]) -> dict[str, Any] | None:
    """Follows a training through its events, which are JSON lines. Returns its notes; raises the error it reports."""
    notes, done = None, 0
    with ExitStack() as stack:
        advance = None
        for line in events:
            match json.loads(line):
                case {"progress": ["training", int(now), int(total)]}:
                    if advance is None:
                        advance = stack.enter_context(progress("training", total))
                    advance(now - done)
                    done = now
                case {"refused": str(message)}:
                    raise UserError(message)
                case {"failed": str(message)}:
                    raise RuntimeError(f"unsloth's process failed: {message}")
                case {"notes": dict(found)}:
                    notes = found
                case _:
                    continue  # progress of another part
    return notes
