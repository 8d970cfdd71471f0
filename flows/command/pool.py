"""`sublim pools | deploy | worker`: what a lab's server knows of this checkout, and a worker for one GPU."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from socket import gethostname

from flows.command.run import Subparsers
from flows.infra import server
from flows.infra.prefect_api import chosen_url
from flows.infra.prefect_api import settings as prefect_settings
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.core.interpreter import python
from sublim.store.opening import open_store


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `pools`, `deploy` and `worker`."""
    command = commands.add_parser("pools", help="make the work pools of prefect.yaml, and the rules for lost runs")
    command.add_argument("--show", metavar="POOL", help="only print the pool's base job template, as JSON")
    command.set_defaults(run=pools)
    command = commands.add_parser("deploy", help="register a deployment of every flow for each pool")
    command.add_argument("names", nargs="*", metavar="FLOW/POOL", help="only these, as in pipeline/cpu")
    command.set_defaults(run=deploy)
    command = commands.add_parser("worker", help="run what a pool is given, on one GPU of this machine or without one")
    command.add_argument("--pool", default="a6000", help="the work pool (default a6000)")
    command.add_argument("--gpu", metavar="N", help="the card, by its number in nvidia-smi or its UUID")
    command.add_argument("--limit", type=int, default=1, help="runs at once (default 1)")
    command.add_argument("--name", help="how the worker is called in the UI (default: host, pool and card)")
    command.set_defaults(run=worker)


def find_server() -> None:
    """Puts the server's address into PREFECT_API_URL; starts none."""
    if chosen_url() is None:
        local = server.running()
        if local is None:
            raise UserError(
                "no Prefect server is known: set PREFECT_API_URL to your lab's, or `make server` on this host"
            )
        os.environ["PREFECT_API_URL"] = local.api
    server.ensure()


def pools(options: argparse.Namespace) -> int:
    """Makes or updates the pools and the rules, or shows a pool's template."""
    from flows.infra.pools import create, declared, template

    found = declared()
    if options.show:
        settle()
        if options.show not in found:
            raise UserError(f"prefect.yaml has no pool {options.show!r} (has: {', '.join(found)})")
        print(json.dumps(template(found[options.show]), indent=1))
        return 0
    find_server()
    settle()
    for name, pool in found.items():
        create(name, pool)
        print(f"pool {name}: {pool.about}")
    from flows.infra.lost_runs import install

    for name in install():
        print(f"rule {name.removeprefix('sublim: ')}")
    return 0


def settle() -> None:
    """Fills in what prefect.yaml asks of the environment and has a usual value: repository, store, schedules."""
    from flows.infra.pools import repository

    os.environ["SUBLIM_REPO"] = str(repository().resolve())
    store = os.environ.get("SUBLIM_STORE") or "results"
    os.environ["SUBLIM_STORE"] = store if "://" in store else str(Path(store).expanduser().resolve())
    os.environ["SUBLIM_SCHEDULES"] = os.environ.get("SUBLIM_SCHEDULES") or "false"


def deploy(options: argparse.Namespace) -> int:
    """Registers everything in prefect.yaml; again after every change to it."""
    find_server()
    settle()
    repository = os.environ["SUBLIM_REPO"]
    which = [part for name in options.names for part in ("--name", name)] or ["--all"]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *which]
    # A prefect.toml of the folder that this was called in is not seen from the repository.
    environment = os.environ | prefect_settings().to_environment_variables(exclude_unset=True)
    return subprocess.run(command, cwd=repository, env=environment, check=False).returncode


def worker(options: argparse.Namespace) -> int:
    """Checks this machine, then becomes the worker."""
    from flows.infra.pools import card_of, environment_of, lacking, read

    find_server()
    template = read(options.pool)
    card = card_of(template)
    if card and options.gpu is None:
        raise UserError(f"the pool {options.pool} is for GPUs: name this worker's, as in --gpu 0")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order, which the number was read from
    os.environ["CUDA_VISIBLE_DEVICES"] = options.gpu or ""
    if card and (why := lacking(card, gpu())):
        raise UserError(f"no worker for the pool {options.pool} on {gethostname()}, GPU {options.gpu}: {why}")
    if store := environment_of(template).get("SUBLIM_STORE"):
        os.environ["SUBLIM_STORE"] = store
    open_store().try_out()
    place = f"gpu{options.gpu}" if options.gpu else str(os.getpid())
    name = options.name or f"{gethostname()}-{options.pool}-{place}"
    # A worker ends itself by SIGINT, which a shell's background jobs ignore: a SIGTERM would then do nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = [*python(), "-m", "prefect", "worker", "start", "--pool", options.pool, "--name", name]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "--limit", str(options.limit)])
