"""Prefect's lock protocol on the store's file locks: one build per key, and none stale after a kill."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger

from sublim.files.locks import holder, is_locked, try_lock, unlock


class FileLockManager:
    """Locks in `directory`, one file per key; a lock dies with the process that holds it.

    `claimed` is entered with each lock held, and left before it is given back: what it does, Prefect's decision between
    hit and miss comes after.
    """

    def __init__(
        self, directory: Path, poll: float = 0.2, claimed: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.directory, self.poll, self.claimed = directory, poll, claimed
        self._held: dict[str, tuple[ExitStack, str]] = {}

    def __getstate__(self) -> dict[str, Any]:  # Prefect copies policies; a copy holds no lock
        return {"directory": self.directory, "poll": self.poll, "claimed": self.claimed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.directory, self.poll, self.claimed = state["directory"], state["poll"], state["claimed"]
        self._held = {}

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.lock"

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Waits for the lock (for ever without a timeout); True when it is held."""
        if self.is_lock_holder(key, holder):
            return True
        deadline = None if acquire_timeout is None else time.monotonic() + acquire_timeout
        told = False
        while (descriptor := try_lock(self._path(key), holder)) is None:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if not told:
                told = True
                self._tell(key)
            time.sleep(self.poll)
        with ExitStack() as stack:
            stack.callback(unlock, descriptor)
            stack.enter_context(self.claimed())
            self._held[key] = (stack.pop_all(), holder)
        return True

    def _tell(self, key: str) -> None:
        get_run_logger().info("waiting: %s is building %s", holder(self._path(key)), key)

    def release_lock(self, key: str, holder: str) -> None:
        """Gives the lock back; ValueError when `holder` does not hold it."""
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"{holder} holds no lock for {key}")
        self._held.pop(key)[0].close()

    def is_locked(self, key: str) -> bool:
        return key in self._held or is_locked(self._path(key))

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return key in self._held and self._held[key][1] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Waits until nobody holds the lock; False when it took longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.is_locked(key):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(self.poll)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)
