"""The `sublim` command: runs experiments, shows their results, and keeps the store and the Prefect server in order."""

import os
import sys
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from io import TextIOWrapper
from pkgutil import resolve_name
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console

from flows.registry import FLOWS
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
        "show": ("look:show", "Show how an artifact in the store was made: config, inputs, code, machine, files."),
        "store": ("store:app", "List, check and clean the store of results."),
        "models": ("models:app", "List or install the bundled models, or export a trained model."),
    },
    "Prefect": {
        "server": ("server:app", "Start, stop or look at the local Prefect server, which also serves its UI."),
        "pools": ("pool:pools", "Create the work pools of prefect.yaml, and the rules for runs whose worker was lost."),
        "deploy": ("pool:deploy", "Register the deployments of prefect.yaml, one of each flow for each pool."),
        "worker": ("pool:worker", "Start a worker for the runs of a work pool, on one GPU of this machine or its CPU."),
    },
    "Other": {"doctor": ("doctor:doctor", "Show what this machine can run, and what to do about what it cannot.")},
}
"""By heading, each command with its module and object, which are imported when it is called, and its help."""
LOOKING = {"presets", "runs", "show", "report", "store", "models", "doctor"}
"""Commands that only print, and whose reader may stop reading, as in `sublim store ls | head`."""


class CommandLine(App):
    """The whole command line. The help of a flow ends with all its settings."""

    def help_print(self, tokens: str | Iterable[str] | None = None, *, console: Any = None) -> None:
        """Prints the help of the command that `tokens` name."""
        console = console or Console()
        with console.capture() as captured:  # Rich itself would end the program with 1 when a reader goes away
            super().help_print(tokens, console=console)
        print(captured.get(), end="")
        match tokens:
            case []:
                print("Start with `sublim doctor`, then `sublim run pipeline --preset quickstart`.")
            case ["run", str(flow), *_] if flow in FLOWS:
                print(resolve_name("flows.command.run:settings_text")(flow))
            case _:
                pass


def command_line() -> App:
    """The command line with all its commands."""
    app = CommandLine(
        name="sublim",
        help="Subliminal learning: does a trait pass from one model to another through data that do not show it?",
        version=partial(version, "sublim"),
        default_parameter=Parameter(negative=()),
        help_format="plaintext",
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    groups = [Group.create_ordered(title) for title in COMMANDS]
    for group, commands in zip(groups, COMMANDS.values(), strict=True):
        for place, (name, (where, about)) in enumerate(commands.items()):
            app.command(f"flows.command.{where}", name=name, group=group, sort_key=place, help=about)
    app["--help"].group = app["--version"].group = groups[-1]
    app.register_install_completion_command(group=groups[-1], help="Install completion of this command for your shell.")
    return app


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns the exit code: 0 for success, 1 for a failure, 2 for a mistake of the user, 130 after Ctrl-C.
    """
    if sys.getfilesystemencoding() != "utf-8" and (arguments is None or _is_the_program()):
        _start_again_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a Latin-1 or C locale cannot print most letters
    words = sys.argv[1:] if arguments is None else arguments
    asked_for_help = not {"--help", "-h", "--version"}.isdisjoint(words)
    try:
        code: int | None = command_line()(words)
    except UserError as error:
        return _told(str(error))
    except CycloptsError as error:
        return _told(f"{' '.join(str(error).split())} (see `sublim --help`)")
    except BrokenPipeError:
        if not asked_for_help and not LOOKING.issuperset(words[:1]):
            raise
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter flushes to the closed pipe at exit
        return 0
    except OSError as error:
        if (line := file_fault(error)) is None:
            raise
        return _told(line)
    except KeyboardInterrupt:
        print("sublim: stopped; run the same command again to continue from here", file=sys.stderr)
        return 130
    # Without a code, help was printed: because the user asked for it, or because a command is missing.
    return code if code is not None else 0 if asked_for_help or "--install-completion" in words else 2


def _is_the_program() -> bool:
    """Whether this process is `python -m flows...`, not another program that calls `main`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] == "flows"


def _start_again_in_utf8() -> None:
    """Restarts Python in UTF-8 mode: file names are UTF-8, as in Rust and C++ libraries; output keeps the encoding."""
    for name in from_file:  # the new process reads .env again
        del os.environ[name]
    os.environ["PYTHONUTF8"] = "1"  # for child processes
    if sys.stdout is not None:  # it is None when closed
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _told(line: str) -> int:
    print(f"sublim: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
