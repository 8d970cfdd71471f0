"""The note that a local Prefect server leaves in its folder: its address and its process.

Hosts may share a home folder over a network, and so may the containers of one host. Each of them has its own loopback
interface and its own process numbers, so a note is only valid where it was written.
"""

import socket
from pathlib import Path

from pydantic import ValidationError

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.core.owner import boot, namespace, same_process
from sublim.files.locks import is_locked, try_lock
from sublim.files.whole_files import write_whole


class Server(Config):
    """A local server and its process."""

    url: str
    """Address of the UI. The API is at `/api` below it."""
    pid: int
    started: float
    """Start time of the process, in seconds since 1970."""
    host: str
    """Name of the host."""
    boot: str
    """Boot id of the host, which changes with every boot."""
    spaces: list[str]
    """Process and network namespaces; each container has its own."""

    @property
    def api(self) -> str:
        """Address of the API."""
        return f"{self.url}/api"

    def is_here(self) -> bool:
        """Whether this process can reach the server and sees its process number."""
        return (self.host, self.boot, self.spaces) == (socket.gethostname(), boot(), spaces())

    def runs_here(self) -> bool:
        """Whether the server is a running process of this host."""
        return self.is_here() and same_process(self.pid, self.started) is not None

    def runs_elsewhere(self, folder: Path) -> bool:
        """Whether another host or container may still run the server."""
        if self.is_here():
            return False
        # On the same kernel, and after a reboot of this host, a free lock means that the server is gone. Between
        # hosts, not every file system shows the locks of the other host.
        if boot() == self.boot or socket.gethostname() == self.host:
            return is_held(folder)
        return True


def spaces(pid: int | str = "self") -> list[str]:
    """The process and network namespaces of a process."""
    return [namespace("pid", pid), namespace("net", pid)]


def here(url: str, pid: int, started: float) -> Server:
    """The note of a server that is a process of this host."""
    return Server(url=url, pid=pid, started=started, host=socket.gethostname(), boot=boot(), spaces=spaces())


def read(folder: Path) -> Server | None:
    """The server noted in `folder`; None without a note, or when the note is incomplete or of an older version."""
    try:
        return Server.model_validate_json((folder / "server.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    except PermissionError as error:
        raise UserError(
            f"{error.filename} belongs to another user and cannot be read: set SUBLIM_HOME to a folder of your own"
        ) from error


def write(folder: Path, server: Server) -> None:
    """Writes the note of the server into `folder`."""
    write_whole(folder / "server.json", server.model_dump_json())


def remove(folder: Path) -> None:
    """Removes the note of the server from `folder`."""
    (folder / "server.json").unlink(missing_ok=True)


def hold(folder: Path) -> int:
    """Takes the lock of `folder`, which a server inherits and holds while it runs.

    Returns the lock's file descriptor. Raises UserError when a server holds the lock.
    """
    descriptor = try_lock(folder / "server.alive")
    if descriptor is None:
        raise UserError(
            f"a Prefect server that cannot be seen from here uses {folder} (of another container or user): stop it, or "
            "set SUBLIM_HOME to a folder of your own"
        )
    return descriptor


def is_held(folder: Path) -> bool:
    """Whether a server holds the lock of `folder`. True also where the file system has no locks, to be safe."""
    try:
        return is_locked(folder / "server.alive")
    except UserError:
        return True
