"""The `sublim` command: run flows, look at what they left, keep the store in order.

sublim run pipeline --preset quickstart --target owl
sublim run pipeline --help
sublim presets | runs | show KEY | report RUN
sublim store ls | verify | forget STAGE KEY | gc
sublim models ls | fetch NAME | export KEY FOLDER
sublim power --effect 0.3 --pilot KEY
sublim server start | stop | status
sublim pools | deploy
sublim worker --pool a6000 --gpu 0
sublim doctor
"""

import argparse
import os
import sys
from io import TextIOWrapper

from flows.command import look, models, pool, power, run, server, store
from sublim.core.errors import UserError, file_fault
from tasks.environment import from_file

LOOKING = ("presets", "runs", "show", "report", "store", "models", "doctor")
"""Commands whose reader may go away, as in `sublim store ls | head`."""


def parser() -> argparse.ArgumentParser:
    """The command line, without reading it."""
    root = argparse.ArgumentParser(prog="sublim", description="Subliminal learning, measured.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (run, look, store, models, power, server, pool):
        part.register(commands)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 when it went well, 2 after a mistake of the user's, 1 after a failure."""
    if sys.getfilesystemencoding() != "utf-8" and (arguments is None or _is_the_program()):
        _start_again_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a Latin-1 or C locale lacks most letters
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        return _told(str(error))
    except BrokenPipeError:
        if options.command not in LOOKING:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter writes there once more
        return 0
    except OSError as error:
        if (line := file_fault(error)) is None:
            raise
        return _told(line)
    except KeyboardInterrupt:
        print("sublim: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _is_the_program() -> bool:
    """Whether this process is `python -m flows...`, and no other program that calls the command."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] == "flows"


def _start_again_in_utf8() -> None:
    """Has Python take names of files as UTF-8, as libraries in Rust and C++ do, and print what the locale shows."""
    for name in from_file:  # it is read again
        del os.environ[name]
    os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
    if sys.stdout is not None:  # a closed one
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _told(line: str) -> int:
    print(f"sublim: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
