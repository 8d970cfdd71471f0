"""Locks on files (flock). The kernel holds them, so a lock is released when the process that holds it ends."""

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
    """Takes the lock at `path` and returns its file descriptor, or None when another process holds it.

    A process must not fork while it holds a lock: the child would keep it. `holder` says who takes the lock.
    Raises UserError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    if not _flock(descriptor, path, fcntl.LOCK_EX):
        os.close(descriptor)
        return None
    share_with_group(path)
    note = {"host": socket.gethostname(), "pid": os.getpid(), "holder": holder}
    with contextlib.suppress(OSError):  # the disk is full: the note is only for log messages
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
    return descriptor


def _flock(descriptor: int, path: Path, kind: int) -> bool:
    """Whether the lock was taken. Where the file system has no locks, closes the descriptor and raises UserError."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        os.close(descriptor)
        raise no_locks(path.parent, str(error.strerror)) from error
    return True


def no_locks(folder: Path, why: str) -> UserError:
    """The error for a folder whose file system has no locks: without them two runs could build one artifact."""
    return UserError(
        f"the file system of {folder} has no working locks ({why}): take a folder on another, "
        "or have it mounted with them (NFS: its lock service, Lustre: -o flock)"
    )


def unlock(descriptor: int) -> None:
    """Releases a lock. Its file stays: removing it could give two waiting processes a lock each."""
    with contextlib.suppress(OSError):  # the note in the file is only for log messages
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether the lock is held. Asks with a shared lock."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        free = _flock(descriptor, path, fcntl.LOCK_SH)
        os.close(descriptor)
        return not free
    return False


def holder(path: Path) -> str:
    """The process that holds the lock, for log messages."""
    try:
        note = json.loads(path.read_bytes())
        return f"process {note['pid']} on {note['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # there is no note yet, or another host sees half of it
        return "another run"


@contextmanager
def locked(path: Path, poll: float = 0.1) -> Generator[None]:
    """Holds the lock at `path` for the block. Waits for it as long as necessary, trying every `poll` seconds."""
    while (descriptor := try_lock(path)) is None:
        time.sleep(poll)
    try:
        yield
    finally:
        unlock(descriptor)
