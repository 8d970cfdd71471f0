"""A real Prefect server as a process of its own, for tests and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

START_SECONDS = 180.0
# Ends the server with whoever started it, even by SIGKILL: its end of this pipe closes.
SERVE = """
import os, signal, sys, threading
def follow():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=follow, daemon=True).start()
from prefect.cli import app
app()
"""


class Starting(NamedTuple):
    """A server that was started: `ready()` waits for it and gives its API address."""

    ready: Callable[[], str]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def starting_server(
    home: Path, *, port: int | None = None, ui: bool = False, database: str | None = None
) -> Generator[Starting]:
    """Starts `prefect server start` on 127.0.0.1, without waiting for it; ends it in any case.

    `database`: SQLAlchemy's address of another database than SQLite in `home`.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_UI_ENABLED": str(ui).lower(),
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    if database is not None:
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", SERVE, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("a") as log:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield Starting(lambda: _wait_until_healthy(url, server, home / "server.log"))
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


@contextmanager
def running_server(home: Path) -> Generator[str]:
    """A server that answers; gives its API address."""
    with starting_server(home) as server:
        yield server.ready()


def _wait_until_healthy(url: str, server: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return url
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"no Prefect server on {url}:\n{log.read_text(encoding='utf-8')[-3000:]}")
