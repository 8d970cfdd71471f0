"""When requests to a server may begin: paced, put off as long as the server asks, and stopped together."""

import email.utils
import logging
import random
import re
import time
from datetime import UTC, datetime
from threading import Event, Lock

LONGEST_BACKOFF = 60.0
TOLD = 10.0
"""Seconds of a wait that the run's log tells of."""
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?")
log = logging.getLogger(__name__)


class Stopped(Exception):
    """Another request has failed for good: this one is not worth waiting for."""


class Pace:
    """Says when the next request may begin; shared by all threads."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self.per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self.per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.stopped, self._lock, self._next, self._told = Event(), Lock(), 0.0, 0.0

    def wait(self, tokens: int) -> None:
        """Waits for this request's turn, and puts off the next by what this one uses."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + max(self.per_request, tokens * self.per_token)
        self.sleep(start - time.monotonic())

    def settle(self, estimated: int, used: int) -> None:
        """Corrects the estimate of a request's tokens by what the server counted."""
        with self._lock:
            self._next += (used - estimated) * self.per_token

    def hold(self, seconds: float) -> None:
        """Nobody begins before `seconds` have passed."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float, why: str = "") -> None:
        """Raises Stopped as soon as there is nothing to wait for; tells of a long wait once, however many wait."""
        if why and seconds >= TOLD:
            with self._lock:
                told, self._told = self._told, max(self._told, time.monotonic() + seconds)
            if told < time.monotonic():
                log.warning("waiting %.0f s: %s", seconds, why)
        if self.stopped.wait(max(0.0, seconds)):
            raise Stopped


def backoff(attempt: int) -> float:
    """Seconds before the next try: doubling, and spread so that many clients don't return at once."""
    return min(LONGEST_BACKOFF, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)


def retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, be they plain, as in 2m59.5s, or until a date; None for anything else."""
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if text and (found := _DURATION.fullmatch(text)):
        return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    try:
        parsed = email.utils.parsedate_tz(text)
        return parsed and max(0.0, email.utils.mktime_tz(parsed) - datetime.now(UTC).timestamp())
    except (ValueError, OverflowError):
        return None
