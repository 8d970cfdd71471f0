"""`sublim pools | deploy | worker`: what a lab's server knows of this checkout, and a worker for one GPU."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from socket import gethostname
from typing import Annotated

from cyclopts import Parameter

from flows.infra import server
from flows.infra.prefect_api import chosen_url
from flows.infra.prefect_api import settings as prefect_settings
from sublim.core.errors import UserError
from sublim.core.hardware import gpu as visible_gpu
from sublim.core.interpreter import python
from sublim.store.opening import open_store


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


Shown = Annotated[str | None, Parameter(metavar="POOL", help="Only print this pool's base job template, as JSON.")]
Names = Annotated[str, Parameter(help="Register only these deployments, as in pipeline/cpu.")]


def pools(*, show: Shown = None) -> int:
    """Makes or updates the pools and the rules, or prints a pool's template."""
    from flows.infra.pools import create, declared, template

    found = declared()
    if show:
        settle()
        if show not in found:
            raise UserError(f"prefect.yaml has no pool {show!r} (has: {', '.join(found)})")
        print(json.dumps(template(found[show]), indent=1))
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


def deploy(*names: Names) -> int:
    """Registers deployments of prefect.yaml; to be repeated after every change to it."""
    find_server()
    settle()
    repository = os.environ["SUBLIM_REPO"]
    which = [part for name in names for part in ("--name", name)] or ["--all"]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *which]
    # A prefect.toml of the folder that this was called in is not seen from the repository.
    environment = os.environ | prefect_settings().to_environment_variables(exclude_unset=True)
    return subprocess.run(command, cwd=repository, env=environment, check=False).returncode


def worker(*, pool: str = "a6000", gpu: str | None = None, limit: int = 1, name: str | None = None) -> int:
    """Run what a work pool is given, on one GPU of this machine or on its CPU.

    Args:
        pool: The work pool.
        gpu: The GPU, by its number in nvidia-smi or its UUID.
        limit: How many runs at once.
        name: What the worker is called in the UI. By default it is made of host, pool and GPU.
    """
    from flows.infra.pools import card_of, environment_of, lacking, read

    find_server()
    template = read(pool)
    card = card_of(template)
    if card and gpu is None:
        raise UserError(f"the pool {pool} is for GPUs: name this worker's, as in --gpu 0")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order, which the number was read from
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu or ""
    if card and (why := lacking(card, visible_gpu())):
        raise UserError(f"no worker for the pool {pool} on {gethostname()}, GPU {gpu}: {why}")
    if store := environment_of(template).get("SUBLIM_STORE"):
        os.environ["SUBLIM_STORE"] = store
    open_store().try_out()
    place = f"gpu{gpu}" if gpu else str(os.getpid())
    name = name or f"{gethostname()}-{pool}-{place}"
    # A worker ends itself by SIGINT, which a shell's background jobs ignore: a SIGTERM would then do nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = [*python(), "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "--limit", str(limit)])
