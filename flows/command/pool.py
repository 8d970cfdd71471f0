"""`sublim pools | deploy | worker`: work pools and deployments on a lab's server, and a worker for one GPU."""

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
from flows.infra.pools import card_of, create, declared, environment_of, lacking, read, repository, template
from flows.infra.prefect_api import chosen_url
from flows.infra.prefect_api import settings as prefect_settings
from sublim.core.errors import UserError
from sublim.core.hardware import gpu as visible_gpu
from sublim.core.interpreter import python
from sublim.store.opening import open_store

Shown = Annotated[str | None, Parameter(metavar="POOL", help="Only print this pool's base job template, as JSON.")]
Names = Annotated[str, Parameter(help="Register only these deployments, as in pipeline/cpu.")]


def find_server() -> None:
    """Sets PREFECT_API_URL to the address of a running server. Raises UserError when there is none."""
    if chosen_url() is None:
        local = server.running()
        if local is None:
            raise UserError(
                "no Prefect server is known: set PREFECT_API_URL to your lab's, or run `sublim server start`"
            )
        os.environ["PREFECT_API_URL"] = local.api
    server.ensure()


def pools(*, show: Shown = None) -> int:
    """Creates or updates the pools and the rules for lost runs, or prints a pool's base job template."""
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
    """Gives the variables that prefect.yaml uses their default values: repository, store, schedules."""
    os.environ["SUBLIM_REPO"] = str(repository().resolve())
    store = os.environ.get("SUBLIM_STORE") or "results"
    os.environ["SUBLIM_STORE"] = store if "://" in store else str(Path(store).expanduser().resolve())
    os.environ["SUBLIM_SCHEDULES"] = os.environ.get("SUBLIM_SCHEDULES") or "false"


def deploy(*names: Names) -> int:
    """Registers deployments of prefect.yaml. Repeat it after every change to that file."""
    find_server()
    settle()
    which = [part for name in names for part in ("--name", name)] or ["--all"]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *which]
    # Prefect runs in the repository, where it would not see a prefect.toml of the current folder.
    environment = os.environ | prefect_settings().to_environment_variables(exclude_unset=True)
    return subprocess.run(command, cwd=os.environ["SUBLIM_REPO"], env=environment, check=False).returncode


def worker(*, pool: str = "a6000", gpu: str | None = None, limit: int = 1, name: str | None = None) -> int:
    """Checks this machine, then becomes the worker.

    Args:
        pool: The work pool to take runs from.
        gpu: The GPU to use, by its number in nvidia-smi or by its UUID. Without it the worker sees no GPU.
        limit: How many runs the worker does at the same time.
        name: Name of the worker in the UI. The default is made of host, pool and GPU.
    """
    find_server()
    template = read(pool)
    card = card_of(template)
    if card and gpu is None:
        raise UserError(f"the pool {pool} is for GPUs: name this worker's, as in --gpu 0")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # number GPUs like nvidia-smi
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu or ""
    if card and (why := lacking(card, visible_gpu())):
        raise UserError(f"no worker for the pool {pool} on {gethostname()}, GPU {gpu}: {why}")
    if store := environment_of(template).get("SUBLIM_STORE"):
        os.environ["SUBLIM_STORE"] = store
    open_store().try_out()
    place = f"gpu{gpu}" if gpu else str(os.getpid())
    name = name or f"{gethostname()}-{pool}-{place}"
    # On SIGTERM, a worker sends itself SIGINT, which background jobs of a shell ignore unless it is reset.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = [*python(), "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "--limit", str(limit)])
