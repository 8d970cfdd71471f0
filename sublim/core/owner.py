"""Identifying a process: its id alone is not enough on another machine, or after the process has ended."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

import psutil

BOOT = Path("/proc/sys/kernel/random/boot_id")
CLOCK_STEP = 1.0
"""Seconds by which two readings of the same start time may differ."""


class Owner(NamedTuple):
    """A process on a certain machine."""

    machine: str
    pid: int
    started: float
    """When it started, in seconds since the boot of the machine: process ids are reused, and clocks are adjusted."""

    @classmethod
    def this(cls) -> "Owner":
        """This process."""
        return cls(machine(), os.getpid(), psutil.Process().create_time() - psutil.boot_time())

    def is_dead(self) -> bool:
        """Whether the process is known to have ended. For a process on another machine this is never known."""
        # Both of psutil's times change when the clock is adjusted; their difference does not.
        return self.machine == machine() and same_process(self.pid, psutil.boot_time() + self.started) is None


def same_process(pid: int, started: float) -> psutil.Process | None:
    """The process on this machine with this id and start time (seconds since the epoch), or None if it has ended."""
    try:
        found = psutil.Process(pid)
        same = abs(found.create_time() - started) <= CLOCK_STEP and found.status() != psutil.STATUS_ZOMBIE
        return found if same else None
    except psutil.NoSuchProcess:
        return None


def machine() -> str:
    """A name of this machine, boot and container, within which process ids are comparable."""
    return " ".join(part for part in (socket.gethostname(), boot(), namespace("pid")) if part)


def boot() -> str:
    """The kernel's id of this boot; empty where the system has none."""
    return BOOT.read_text(encoding="utf-8").strip() if BOOT.exists() else ""


def namespace(kind: str, pid: int | str = "self") -> str:
    """The Linux namespace of a kind (`pid`, `net`) that a process is in, which differs between containers.

    Empty where it is not known.
    """
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:  # not Linux, no such process, or a process of another user
        return ""
