"""Work in a process of its own: the fork of one that has the heavy imports behind it and has computed nothing.

No thread of another test lies in it, and none of the tests pays for those imports again.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec

P = ParamSpec("P")
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["sublim.training.train"])
SECONDS = 300


def killed_at(point: str, work: Callable[P, object], *args: P.args, **named: P.kwargs) -> None:
    """Fails unless `work` is killed at `point`."""
    code = finished(_work, point, work, args, named)
    assert code == -signal.SIGKILL, f"{work.__name__} ended with {code} before {point}"


def command(*words: str, environment: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Runs `sublim` with these words."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        code = finished(_command, words, dict(os.environ if environment is None else environment), out, err)
        return CompletedProcess(words, code, out.read_text(), err.read_text())


def finished(work: Callable[..., object], *args: object) -> int:
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"not finished after {SECONDS} s")
    return process.exitcode


def _work(point: str, work: Callable[..., object], args: tuple[Any, ...], named: dict[str, Any]) -> None:
    os.environ["SUBLIM_KILL_AT"] = point
    work(*args, **named)


def _command(words: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    from flows.__main__ import main

    sys.exit(main([*words]))
