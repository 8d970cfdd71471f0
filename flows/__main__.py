"""The `sublim` command: runs experiments, shows their results, and keeps the store and the Prefect server in order."""

import os
import sys
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from io import TextIOWrapper
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter

from flows.registry import FLOWS, load
from sublim.core.errors import UserError, file_fault
from tasks.environment import from_file

COMMANDS = {
    "Experiments": {
        "run": ("run:app", "Run an experiment. Stages that finished in an earlier run are taken from the store."),
        "presets": ("look:presets", "List the experiments and their presets."),
        "power": ("power:power", "Plan how many seeds or blocks it takes to see an effect of a given size."),
    },
    "Results": {
        "runs": ("look:runs", "List the runs in the store, the newest last."),
        "report": ("look:report", "Print the path of a run's report, and its summary."),
        "show": ("look:show", "Show what an artifact of the store was made from, when, where and how."),
        "store": ("store:app", "List, check and clean the store of results."),
        "models": ("models:app", "List or install the bundled models, or export a trained model."),
    },
    "Prefect": {
        "server": ("server:app", "Start, stop or look at the local Prefect server, which also serves its UI."),
        "pools": ("pool:pools", "Make the work pools of prefect.yaml, and the rules for runs whose worker was lost."),
        "deploy": ("pool:deploy", "Register the deployments of prefect.yaml: every flow for each pool."),
        "worker": ("pool:worker", "Run what a work pool is given, on one GPU of this machine or on its CPU."),
    },
    "Other": {"doctor": ("doctor:doctor", "Show what this machine can run, and what to do about what it cannot.")},
}
"""By heading, each command with its module and object, which are imported when it is called, and its help."""
LOOKING = ("presets", "runs", "show", "report", "store", "models", "doctor")
"""Commands that only print, and whose reader may stop reading, as in `sublim store ls | head`."""


class CommandLine(App):
    """The whole command line. The help of a flow ends with a list of all its settings."""

    def help_print(self, tokens: str | Iterable[str] | None = None, *, console: Any = None) -> None:
        super().help_print(tokens, console=console)
        match tokens:
            case ["run", str(flow), *_] if flow in FLOWS:
                print(load("flows.command.run:settings_text")(flow))
            case _:
                pass


def command_line() -> App:
    """The command line with all its commands."""
    app = CommandLine(
        name="sublim",
        help="Experiments on subliminal learning: does a trait pass from model to model in data that do not show it?",
        version=partial(version, "sublim"),
        default_parameter=Parameter(negative=()),
        help_format="plaintext",
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    for title, commands in COMMANDS.items():
        group = Group.create_ordered(title)
        for place, (name, (where, about)) in enumerate(commands.items()):
            app.command(f"flows.command.{where}", name=name, group=group, sort_key=place, help=about)
    app["--help"].group = app["--version"].group = group
    app.register_install_completion_command(group=group, help="Install completion of this command for your shell.")
    return app


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 when it went well, 2 after a mistake of the user's, 1 after a failure."""
    if sys.getfilesystemencoding() != "utf-8" and (arguments is None or _is_the_program()):
        _start_again_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a Latin-1 or C locale lacks most letters
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code: int | None = command_line()(words)
    except UserError as error:
        return _told(str(error))
    except CycloptsError as error:
        return _told(f"{' '.join(str(error).split())} (see `sublim --help`)")
    except BrokenPipeError:
        if words[0] not in LOOKING:
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
    # Without a code, help was printed: because it was asked for, or because a command is missing.
    return code if code is not None else 0 if any(word.startswith("-") for word in words) else 2


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
