"""Which process something belongs to: its number alone says nothing on another machine, or after it has ended."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

import psutil

BOOT = Path("/proc/sys/kernel/random/boot_id")
CLOCK_STEP = 1.0  # seconds by which two readings of one start time may differ


class Owner(NamedTuple):
    """A process of one machine."""

    machine: str
    pid: int
    started: float
    """When it started, in seconds since the machine's boot: numbers are given again, and clocks are set."""

    @classmethod
    def this(cls) -> "Owner":
        """This process."""
        return cls(machine(), os.getpid(), _since_boot(psutil.Process()))

    def is_dead(self) -> bool:
        """Whether the process is known to be gone; of another machine's that cannot be known."""
        if self.machine != machine():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(_since_boot(process) - self.started) > CLOCK_STEP or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def same_process(pid: int, started: float) -> psutil.Process | None:
    """The process of this machine that has this number and start time, or None when it has ended."""
    try:
        found = psutil.Process(pid)
        same = abs(found.create_time() - started) <= CLOCK_STEP and found.status() != psutil.STATUS_ZOMBIE
        return found if same else None
    except psutil.NoSuchProcess:
        return None


def _since_boot(process: psutil.Process) -> float:
    # Both are readings of the clock, whose steps the difference leaves out.
    return process.create_time() - psutil.boot_time()


def machine() -> str:
    """What tells this machine, this boot and this container apart from others, as far as process ids go."""
    return " ".join(part for part in (socket.gethostname(), boot(), namespace("pid")) if part)


def boot() -> str:
    """The running kernel's own name, new with every boot; empty where the system has none."""
    return BOOT.read_text(encoding="utf-8").strip() if BOOT.exists() else ""


def namespace(kind: str, pid: int | str = "self") -> str:
    """The namespace of a kind (`pid`, `net`) that a process is in: containers have their own. Empty where not known."""
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:  # no Linux, no such process, or another user's
        return ""
