"""Prefect's lock protocol on the store's file locks: one build per key, and none stale after a kill."""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger

from sublim.files.locks import holder as owner
from sublim.files.locks import is_locked, try_lock, unlock


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
        return {**self.__dict__, "_held": {}}

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.lock"

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Waits for the lock (for ever without a timeout); True when it is held."""
        if self.is_lock_holder(key, holder):
            return True
        deadline = time.monotonic() + (math.inf if acquire_timeout is None else acquire_timeout)
        told = False
        while (descriptor := try_lock(self._path(key), holder)) is None:
            if time.monotonic() >= deadline:
                return False
            if not told:
                told = True
                get_run_logger().info("waiting: %s is building %s", owner(self._path(key)), key)
            time.sleep(self.poll)
        with ExitStack() as stack:
            stack.callback(unlock, descriptor)
            stack.enter_context(self.claimed())
            self._held[key] = (stack.pop_all(), holder)
        return True

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
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while self.is_locked(key):
            if time.monotonic() >= deadline:
                return False
            time.sleep(self.poll)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)
