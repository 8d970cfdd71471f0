"""A real PostgreSQL server of Debian's package as a process of its own, ended with whoever started it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 60.0
# Ends the server, and waits for it, when this process's stdin closes: by the test, or by the test's death.
SERVE = """
import signal, subprocess, sys
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, user=sys.argv[1] or None)
sys.stdin.read()
server.send_signal(signal.SIGINT)
server.wait()
"""


def binary(name: str) -> str:
    """Path of one of PostgreSQL's programs: Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) or [Path(shutil.which(name) or "")]
    if not found[-1].is_file():
        raise RuntimeError(f"{name} is missing: apt-get install -y postgresql (.ci/run does)")
    return str(found[-1])


def user() -> str | None:
    """PostgreSQL refuses to run as root; Debian's package has made a user for it."""
    return "postgres" if os.geteuid() == 0 else None


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server on a free port of 127.0.0.1 with an empty database `studies`; gives its URL."""
    root = Path(tempfile.mkdtemp(prefix="sublim-postgres-"))
    if user() is not None:
        shutil.chown(root, user())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = [binary("initdb"), "-D", str(root / "data"), "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True, cwd="/", user=user())
    command = [binary("postgres"), "-D", str(root / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", str(root), "-F"]
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, user() or "", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
        )
    try:
        host = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run([binary("pg_isready"), *host], capture_output=True, check=False).returncode:
            assert server.poll() is None, (root / "server.log").read_text()
            assert time.monotonic() < deadline, (root / "server.log").read_text()
            time.sleep(0.1)
        subprocess.run([binary("createdb"), *host, "studies"], check=True, capture_output=True)
        yield f"postgresql://postgres@127.0.0.1:{port}/studies"
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(30)
        shutil.rmtree(root, ignore_errors=True)


def for_prefect(url: str) -> str:
    """The address of a database as Prefect's server wants it."""
    return url.replace("postgresql://", "postgresql+asyncpg://")
