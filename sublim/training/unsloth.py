"""The `unsloth` trainer: adapters trained by unsloth's kernels, on a GPU and in a process of their own.

unsloth rewrites the classes of transformers, peft and trl when it is imported, so whatever else ran in that process
would not be what it says. Its process ends with the training.
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
from sublim.models.opening import forget_base, neighbours
from sublim.training.config import TrainConfig, no_unsloth
from sublim.training.loop import log_losses


def train(out: Path, config: TrainConfig, *, scratch: Path, base: Path, data: Path) -> dict[str, Any]:
    """Like `sublim.training.train.train`: same files, same notes, resumes from the same checkpoints.

    A student of the bundled model, 64 updates, takes 37 to 54 s on an H200 with three others beside it and 3.3 GiB
    (trl: 9 to 27 s, 3.7 GiB; effect and losses the same within .02 nats); alone, 33 s pass before its first update.
    unsloth's kernels need a bfloat16 base; with a float32 one (`frozen_base`) it computes as peft does.
    """
    if why := no_unsloth():
        raise UserError(f"the unsloth trainer cannot run here: {why}; or set trainer to trl")
    forget_base()
    for forget in neighbours:
        forget()
    job = {
        "out": str(out),
        "config": config.resolved().model_dump(mode="json"),
        "scratch": str(scratch),
        "base": str(base),
        "data": str(data),
    }
    read, write = os.pipe()
    environment = {
        # Leaves trl's trainer as it is, which is ours too; it has no other effect where there is a GPU. The rewritten
        # one puts autocast of its own around the model, whatever `dtype` says.
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
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        with os.fdopen(read, encoding="utf-8") as events:
            notes = followed(events)
    if notes is None:
        raise RuntimeError(f"unsloth's process ended with code {process.returncode} and without a word")
    log_losses(list(read_jsonl(out / "training.jsonl")))  # what that process logged is nowhere
    return notes


def followed(events: Iterable[str]) -> dict[str, Any] | None:
    """The notes of a training that tells its events as JSON lines; raises what it raised."""
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
