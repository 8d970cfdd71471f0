"""The local Prefect server: one long-lived process that `sublim run` finds, or starts when there is none."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from base64 import b64encode
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from sublim.errors import UserError
from sublim.locks import locked
from sublim.store import write_synced

USUAL_PORT = 4200
START_SECONDS = 120.0


class Server(NamedTuple):
    """A running local server."""

    url: str
    """Address of the UI; the API is below it at /api."""
    pid: int


def home() -> Path:
    """Where the server keeps its database, log and address: SUBLIM_HOME, by default `~/.sublim`."""
    path = Path(os.environ.get("SUBLIM_HOME", "~/.sublim")).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def configured_url() -> str | None:
    """The API address that the user chose: PREFECT_API_URL, or that of the active Prefect profile.

    Raises UserError for one that holds a password: addresses are shown and logged.
    """
    url = _setting("PREFECT_API_URL")
    if url and urlsplit(url).username is not None:
        raise UserError("the Prefect server's address holds a user or password: put them in PREFECT_API_AUTH_STRING")
    return url


def _setting(name: str) -> str | None:
    """A setting of Prefect's from the environment, or from the active profile."""
    if text := os.environ.get(name):
        return text
    profiles = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "profiles.toml"
    if not profiles.exists():
        return None
    settings = tomllib.loads(profiles.read_text(encoding="utf-8"))
    active = os.environ.get("PREFECT_PROFILE") or settings.get("active")
    return settings.get("profiles", {}).get(active, {}).get(name)


def responds(url: str, seconds: float = 2.0) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=seconds) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def check_password(url: str, seconds: float = 10.0) -> None:
    """Raises UserError when the server wants a password (its health does not) and has not the one we know."""
    request = urllib.request.Request(f"{url.rstrip('/')}/admin/version")
    password = _setting("PREFECT_API_AUTH_STRING")
    if password:
        request.add_header("Authorization", f"Basic {b64encode(password.encode()).decode()}")
    elif _setting("PREFECT_API_KEY"):
        return  # Prefect's cloud, or a gateway of the lab's: not for us to judge
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.UNAUTHORIZED:
            return
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return  # busy; Prefect's own client tries again for longer
    if password:
        raise UserError(f"the Prefect server at {url} refuses the user:password in PREFECT_API_AUTH_STRING")
    raise UserError(f"the Prefect server at {url} wants a password: set PREFECT_API_AUTH_STRING to its user:password")


def running() -> Server | None:
    """The local server, if it was started and answers."""
    note = home() / "server.json"
    if not note.exists():
        return None
    server = Server(**json.loads(note.read_text(encoding="utf-8")))
    return server if responds(f"{server.url}/api") else None


def start() -> Server:
    """The local server, started when none runs. Takes 10 to 30 s then."""
    with locked(home() / "server.lock"):
        if server := running():
            return server
        port = _free_port()
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with (home() / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                # Otherwise the UI asks port 4200, wherever its own server is.
                env=_environment() | {"PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        deadline = time.monotonic() + START_SECONDS
        while not responds(f"{server.url}/api"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"the local Prefect server did not start: see {home() / 'server.log'}")
            time.sleep(0.3)
        write_synced(home() / "server.json", json.dumps(server._asdict()))
        return server


def stop() -> Server | None:
    """Ends the local server and returns what ran, or None."""
    server = running()
    if server is None:
        return None
    os.killpg(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while responds(f"{server.url}/api", 1.0) and time.monotonic() < deadline:
        time.sleep(0.2)
    (home() / "server.json").unlink(missing_ok=True)
    return server


def ensure() -> str:
    """The API address to use from here on, put into PREFECT_API_URL."""
    url = configured_url()
    if url is None:
        url = f"{start().url}/api"
    elif not responds(url, 5.0):
        raise UserError(f"no Prefect server answers at {url}: start it, or unset PREFECT_API_URL")
    check_password(url)
    os.environ["PREFECT_API_URL"] = url
    reread_environment()
    return url


def reread_environment() -> None:
    """Has Prefect look at its variables again, where the check of a flow's settings imported it already."""
    if "prefect.context" in sys.modules:
        sys.modules["prefect.context"].refresh_global_settings_context()


def _environment() -> dict[str, str]:
    database = home() / "prefect"
    ours = {
        "PREFECT_HOME": str(database),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_MEMO_STORE_PATH": str(database / "memo_store.toml"),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    return {**os.environ, **ours}


def _wanted_port() -> int:
    """Where clients of this host look for the server: the port of a configured address that is this host's own."""
    chosen = urlsplit(configured_url() or "")
    return chosen.port or USUAL_PORT if chosen.hostname in ("127.0.0.1", "localhost") else USUAL_PORT


def _free_port() -> int:
    for port in (_wanted_port(), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # taken
                continue
            return probe.getsockname()[1]
    raise AssertionError("the system gave no free port")
