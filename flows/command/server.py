"""`sublim server` and `sublim doctor`: the local Prefect server, and what this machine can run."""

import argparse

from flows.command.run import Subparsers
from flows.infra import server
from flows.infra.prefect_api import chosen_url
from flows.infra.prefect_refusals import origin


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `server` and `doctor`."""
    command = commands.add_parser("server", help="the local Prefect server and its UI")
    command.add_argument("action", choices=["start", "stop", "status"])
    command.set_defaults(run=act)
    command = commands.add_parser("doctor", help="what this machine can run, and what to do about what it can't")
    command.set_defaults(run=diagnose)


def act(options: argparse.Namespace) -> int:
    """Starts, stops or looks at this host's local server."""
    match options.action:
        case "start":
            found = server.start()
            print(f"the server runs at {found.url} (process {found.pid}); its log is {server.folder() / 'server.log'}")
            if (chosen := chosen_url()) and chosen.rstrip("/") != found.api:
                print(f"runs use {chosen}, from {origin()}")
        case "stop":
            found = server.stop()
            print(f"the server at {found.url} was stopped" if found else f"no local server was running{_other_host()}")
        case _:
            found = server.running()
            print(
                f"the server runs at {found.url} (process {found.pid})"
                if found
                else f"no local server is running{_other_host()}"
            )
            if chosen := chosen_url():
                print(f"runs use {chosen}, from {origin()}")
    return 0


def _other_host() -> str:
    if other := server.elsewhere():
        return f" on this host; that of {other.host} (process {other.pid}) is reached and stopped from there"
    return ""


def diagnose(options: argparse.Namespace) -> int:
    from flows.command.doctor import findings

    for finding in findings():
        print(finding)
    return 0
