"""The local Prefect server: one long-lived process, which `sublim run` finds or starts."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flows.infra import server_note
from flows.infra.prefect_api import asking, check, check_chosen, chosen_url, is_loopback, reread_environment, responds
from flows.infra.server_note import Server
from sublim.core.errors import UserError
from sublim.core.owner import same_process
from sublim.files.locks import locked

USUAL_PORT = 4200
START_SECONDS = 180.0  # a minute was measured on a host with a load ten times its cores
ANSWER_SECONDS = 60.0  # counted from when the server listens on its port
END_SECONDS = 10.0
COMMAND = ("-m", "prefect", "server", "start")
TAKEN = "already in use"
# Variables that the local server does not inherit. Profiles are meant for the user's clients, and clients of the local
# server expect its API at the default path.
NOT_INHERITED = ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_SERVER_API_BASE_PATH")


def home() -> Path:
    """The folder of the local servers' state: SUBLIM_HOME, by default `~/.sublim`."""
    try:
        return Path(os.environ.get("SUBLIM_HOME") or "~/.sublim").expanduser().absolute()
    except RuntimeError as error:
        raise UserError("this user has no home folder: set SUBLIM_HOME and PREFECT_HOME to folders, or HOME") from error


def folder() -> Path:
    """The folder of this host's server: `home()`, or a subfolder when the server of another host uses `home()`."""
    if elsewhere() is None:
        return home()
    own = home() / "hosts" / socket.gethostname()
    if note := _elsewhere(own):
        raise UserError(
            f"the Prefect server of {own} is process {note.pid} of another container, also called {note.host}: set "
            "SUBLIM_HOME to a folder of this container's own, or PREFECT_API_URL"
        )
    return own


def elsewhere() -> Server | None:
    """The server of another host that uses `home()`, or None. It cannot be reached from this host."""
    return _elsewhere(home())


def _elsewhere(place: Path) -> Server | None:
    note = server_note.read(place)
    return note if note is not None and note.runs_elsewhere(place) else None


def running() -> Server | None:
    """This host's local server, or None. Waits for one that is starting; raises UserError if it does not answer."""
    return _answering(folder())


def start() -> Server:
    """The local server; starts it, in 10 to 30 s, if it does not run. After a failed start no process is left."""
    with asking("http://127.0.0.1", 1.0):  # settings that no client can use are refused before anything is started
        pass
    with _writable(home()), locked(home() / "server.lock"):
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        if server := _answering(place):
            server_note.write(place, server)
            return server
        _check_loopback()
        for port in (_wanted_port(), 0, 0):
            if server := _started(place, port):
                return server
        raise UserError("the local Prefect server did not start: another program took each port that it tried")


def stop() -> Server | None:
    """Stops this host's local server. Returns the server that ran, or None."""
    place = folder()
    server = _alive(place)
    if server is not None:
        try:
            _end(server)
        except psutil.AccessDenied as error:
            raise UserError(f"the server at {server.url} (process {server.pid}) is another user's") from error
        server_note.remove(place)
    return server


def ensure() -> None:
    """Finds or starts a Prefect server and sets PREFECT_API_URL to the address of its API."""
    if url := chosen_url():
        check_chosen(url)
    else:
        url = start().api
        check(url)
    os.environ["PREFECT_API_URL"] = url
    reread_environment()


@contextmanager
def _writable(path: Path) -> Generator[None]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"the local Prefect server cannot write to {error.filename or path} ({error.strerror}): set SUBLIM_HOME to "
            "another folder, or PREFECT_API_URL to your lab's server"
        ) from error


def _alive(place: Path) -> Server | None:
    """The server of `place` that is a process of this host, even if its note is missing or of an older version."""
    note = server_note.read(place)
    if note is not None and note.runs_here():
        return note
    for process in psutil.process_iter():
        # Passed over: those that ended, another user's, and those without a port.
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
            command = process.cmdline()
            if tuple(command[1:5]) != COMMAND or process.environ().get("PREFECT_HOME") != str(place / "prefect"):
                continue
            if server_note.spaces(process.pid) == server_note.spaces():
                url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
                return server_note.here(url, process.pid, process.create_time())
    return None


def _answering(place: Path) -> Server | None:
    """The server of `place`, once it answers, or None. A server that ends while this waits was being stopped."""
    while server := _alive(place):
        try:
            _wait(server, place / "server.log", 0)
        except UserError:
            if server.runs_here():
                raise
        else:
            return server
    return None


def _started(place: Path, port: int) -> Server | None:
    """A new server of `place`, or None when another program took its port in the meantime."""
    port = _free_port(port)
    log = place / "server.log"
    (place / "prefect").mkdir(exist_ok=True)
    with ExitStack() as undo:
        with log.open("ab") as file:
            before = file.tell()
            kept = server_note.hold(place)
            try:
                process = subprocess.Popen(
                    [sys.executable, *COMMAND, "--host", "127.0.0.1", "--port", str(port)],
                    env=_environment(place, port),
                    cwd=place / "prefect",  # the user's folder may hold a prefect.toml, or be unmounted
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(kept,),
                )
            finally:
                os.close(kept)
        started = psutil.Process(process.pid).create_time()
        server = server_note.here(f"http://127.0.0.1:{port}", process.pid, started)
        undo.callback(server_note.remove, place)
        undo.callback(_end, server)
        server_note.write(place, server)  # before it answers, so that no other process starts a second server meanwhile
        try:
            _wait(server, log, before)
        except UserError:
            if TAKEN in _said(log, before):
                return None
            raise
        undo.pop_all()
        return server


def _wait(server: Server, log: Path, before: int) -> None:
    """Waits until a server answers. Raises UserError when it ends or takes too long."""
    wait, begun = START_SECONDS, time.monotonic()
    while not ((listens := _listens(server)) and responds(server.api, END_SECONDS)):
        if not server.runs_here():
            raise UserError(f"the local Prefect server did not start: {_reason(log, before)} (see {log})")
        if listens and wait == START_SECONDS:
            wait, begun = ANSWER_SECONDS, time.monotonic()
        if time.monotonic() > begun + wait:
            raise UserError(
                f"the local Prefect server (process {server.pid}) does not answer at {server.url} within "
                f"{wait:.0f} s: see {log}; `sublim server stop` ends it"
            )
        time.sleep(0.3)


def _listens(server: Server) -> bool:
    """Whether the server listens on its port. If another program has the port, that program would answer instead."""
    process = same_process(server.pid, server.started)
    if process is None:
        return False
    try:
        found = process.net_connections("tcp")
    except psutil.AccessDenied:  # another user's
        return True
    except psutil.NoSuchProcess:
        return False
    port = urlsplit(server.url).port
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found)


def _end(server: Server) -> None:
    """Ends a server of this host and its child processes, if it is still the same process."""
    process = same_process(server.pid, server.started)
    if process is None:
        return
    processes = [process, *process.children(recursive=True)]
    for signal in (psutil.Process.terminate, psutil.Process.kill):
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                signal(each)
        _, processes = psutil.wait_procs(processes, END_SECONDS)


def _said(log: Path, before: int) -> str:
    return log.read_bytes()[before:].decode("utf-8", "replace") if log.exists() else ""


def _reason(log: Path, before: int) -> str:
    """The line of the server's log that says why it ended."""
    lines = [line.strip() for line in _said(log, before).splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line) or TAKEN in line]
    return (telling or lines or ["it wrote nothing to its log"])[-1][:300]


def _environment(place: Path, port: int) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name not in NOT_INHERITED}
    ours = {
        "COLUMNS": "300",  # so that lines of the log are not wrapped
        "PREFECT_HOME": str(place / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_MEMO_STORE_PATH": str(place / "prefect" / "memo_store.toml"),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Otherwise the UI would use port 4200, whatever port its own server has.
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
    }
    if not any(name.startswith(("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")) for name in kept):
        # Relative to the working folder, because the folder's own name may hold characters with a meaning in a URL.
        ours["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = "sqlite+aiosqlite:///prefect.db"
    return kept | ours


def _wanted_port() -> int:
    """The port of the configured API address, if that address is on this host; otherwise Prefect's default port."""
    chosen = urlsplit(chosen_url() or "")
    return chosen.port or USUAL_PORT if is_loopback(chosen.hostname) else USUAL_PORT


def _check_loopback() -> None:
    # In a network namespace made by `unshare --net`, the interface is down: a server would start and never be reached.
    try:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname(), END_SECONDS):
            pass
    except OSError as error:
        raise UserError(
            "this host cannot reach its own address 127.0.0.1: bring its loopback interface up (ip link set lo up)"
        ) from error


def _free_port(wanted: int) -> int:
    """`wanted` if that port is free, otherwise any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:  # taken
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
