"""Locks on files, held by the kernel: a lock is gone the moment its holder's process is."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sublim.core.errors import UserError
from sublim.files.group_rights import share_with_group


def try_lock(path: Path, holder: str = "") -> int | None:
    """Takes the lock at `path` and returns its file descriptor, or None when another holds it.

    The holder's process must not fork while it holds the lock: a forked child keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    if not _flock(descriptor, path, fcntl.LOCK_EX):
        os.close(descriptor)
        return None
    share_with_group(path)
    note = {"host": socket.gethostname(), "pid": os.getpid(), "holder": holder}
    with contextlib.suppress(OSError):  # a full disk: the note is for a log line, the lock is held without it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
    return descriptor


def _flock(descriptor: int, path: Path, kind: int) -> bool:
    """Whether the lock was got. Raises UserError where the file system has no locks; then the descriptor is closed."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        os.close(descriptor)
        raise no_locks(path.parent, str(error.strerror)) from error
    return True


def no_locks(folder: Path, why: str) -> UserError:
    """What to say of a folder whose file system does not lock, on which one build at a time rests."""
    return UserError(
        f"the file system of {folder} has no working locks ({why}): take a folder on another, "
        "or have it mounted with them (NFS: its lock service, Lustre: -o flock)"
    )


def unlock(descriptor: int) -> None:
    """Gives a lock back. Its file stays: removing it would race with a waiter."""
    with contextlib.suppress(OSError):  # the note in it is for a log line
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another holds the lock. Asks with a shared lock, which never makes a waiter fail."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        free = _flock(descriptor, path, fcntl.LOCK_SH)
        os.close(descriptor)
        return not free
    return False


def holder(path: Path) -> str:
    """Who holds the lock, for a log line."""
    try:
        note = json.loads(path.read_bytes())
        return f"process {note['pid']} on {note['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or another host sees half of it
        return "another run"


@contextmanager
def locked(path: Path, poll: float = 0.1) -> Generator[None]:
    """Holds the lock at `path`, waiting for it as long as it takes."""
    while (descriptor := try_lock(path)) is None:
        time.sleep(poll)
    try:
        yield
    finally:
        unlock(descriptor)
