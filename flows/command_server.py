"""`sublim server` and `sublim doctor`: the local Prefect server, and what this machine can run."""

import argparse

from flows import server
from flows.command_run import Subparsers


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `server` and `doctor`."""
    command = commands.add_parser("server", help="the local Prefect server and its UI")
    command.add_argument("action", choices=["start", "stop", "status"])
    command.set_defaults(run=act)
    command = commands.add_parser("doctor", help="what this machine can run, and what to do about what it can't")
    command.set_defaults(run=diagnose)


def act(options: argparse.Namespace) -> int:
    match options.action:
        case "start":
            found = server.start()
            print(f"the server runs at {found.url} (process {found.pid}); its log is {server.home() / 'server.log'}")
            if (chosen := server.configured_url()) and chosen.rstrip("/") != f"{found.url}/api":
                print(f"runs use {chosen}, as PREFECT_API_URL or the active profile says")
        case "stop":
            found = server.stop()
            print(f"the server at {found.url} was stopped" if found else "no local server was running")
        case _:
            found = server.running()
            print(f"the server runs at {found.url} (process {found.pid})" if found else "no local server is running")
            if chosen := server.configured_url():
                print(f"runs use {chosen}, as PREFECT_API_URL or the active profile says")
    return 0


def diagnose(options: argparse.Namespace) -> int:
    from flows.doctor import findings

    for finding in findings():
        print(finding)
    return 0
