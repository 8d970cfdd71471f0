"""What is written down about a local Prefect server: where it answers and whose process it is.

A home may be shared: by hosts over a network, by containers of one host. Each has its own loopback and process numbers.
"""

import fcntl
import os
import socket
from pathlib import Path

from pydantic import ValidationError

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.core.owner import boot, namespace, same_process
from sublim.files.whole_files import write_whole


class Server(Config):
    """A local server, and the process that it is."""

    url: str
    """Address of the UI; the API is below it at /api."""
    pid: int
    started: float
    """When its process started, in seconds since 1970."""
    host: str
    """Name of its host."""
    boot: str
    """The boot of that host."""
    spaces: list[str]
    """The process and network namespaces: those of a container are its own."""

    @property
    def api(self) -> str:
        """Address of the API."""
        return f"{self.url}/api"

    def is_here(self) -> bool:
        """Whether this process could reach it, and sees its process number."""
        return (self.host, self.boot, self.spaces) == (socket.gethostname(), boot(), spaces())

    def runs_here(self) -> bool:
        """Whether it is a process of this host that is still there."""
        return self.is_here() and same_process(self.pid, self.started) is not None

    def runs_elsewhere(self, folder: Path) -> bool:
        """Whether another host or container may still run it."""
        if self.is_here():
            return False
        # On one kernel, and after a reboot of this host, a free lock says that the server is gone. Between hosts not
        # every file system tells of the other's locks.
        if boot() == self.boot or socket.gethostname() == self.host:
            return is_held(folder)
        return True


def spaces(pid: int | str = "self") -> list[str]:
    """The process and network namespaces of a process."""
    return [namespace("pid", pid), namespace("net", pid)]


def here(url: str, pid: int, started: float) -> Server:
    """A server that is a process of this host."""
    return Server(url=url, pid=pid, started=started, host=socket.gethostname(), boot=boot(), spaces=spaces())


def read(folder: Path) -> Server | None:
    """The server noted in `folder`; None without a note, or with one that is cut short or of an older version."""
    try:
        return Server.model_validate_json((folder / "server.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    except PermissionError as error:
        raise UserError(
            f"{error.filename} is another user's and cannot be read: set SUBLIM_HOME to a folder of your own"
        ) from error


def write(folder: Path, server: Server) -> None:
    """Notes the server of `folder`."""
    write_whole(folder / "server.json", server.model_dump_json())


def remove(folder: Path) -> None:
    """Forgets the server of `folder`."""
    (folder / "server.json").unlink(missing_ok=True)


def hold(folder: Path) -> int | None:
    """Takes the lock that a server inherits and holds while it runs. None where the file system has no locks.

    Raises UserError when a server holds it.
    """
    descriptor = os.open(folder / "server.alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(
            f"a Prefect server that cannot be seen from here uses {folder} (another container's or user's): end it, or "
            "set SUBLIM_HOME to a folder of your own"
        ) from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_held(folder: Path) -> bool:
    """Whether a server holds the lock of `folder`, or may: True where the file system has no locks."""
    try:
        descriptor = os.open(folder / "server.alive", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
