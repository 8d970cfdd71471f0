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


def try_lock(path: Path, holder: str = "") -> int | None:
    """Takes the lock at `path` and returns its file descriptor, or None when another holds it.

    The holder's process must not fork while it holds the lock: a forked child keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    note = {"host": socket.gethostname(), "pid": os.getpid(), "holder": holder}
    with contextlib.suppress(OSError):  # a full disk: the note is for a log line, the lock is held without it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
    return descriptor


def unlock(descriptor: int) -> None:
    """Gives a lock back. Its file stays: removing it would race with a waiter."""
    try:
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another holds the lock. Asks with a shared lock, which never makes a waiter fail."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def holder(path: Path) -> str:
    """Who holds the lock, for a log line."""
    note = path.read_text() if path.exists() else ""
    if not note:
        return "another run"
    fields = json.loads(note)
    return f"process {fields['pid']} on {fields['host']}"


@contextmanager
def locked(path: Path, poll: float = 0.1) -> Generator[None]:
    """Holds the lock at `path`, waiting for it as long as it takes."""
    while (descriptor := try_lock(path)) is None:
        time.sleep(poll)
    try:
        yield
    finally:
        unlock(descriptor)
