"""Rate limiting of requests to a server, with waits that the server asks for and a stop for all requests at once."""

import email.utils
import logging
import random
import re
import time
from datetime import UTC, datetime
from threading import Event, Lock

LONGEST_BACKOFF = 60.0
TOLD = 10.0
"""Waits of at least so many seconds are logged."""
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?")
log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised in a waiting request when another one has failed for good."""


class Pace:
    """Decides when the next request may begin; shared by all threads."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self.per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self.per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.stopped, self._lock, self._next, self._told = Event(), Lock(), 0.0, 0.0

    def wait(self, tokens: int) -> None:
        """Waits for this request's turn, and delays the next request by what this one uses of the limits."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + max(self.per_request, tokens * self.per_token)
        self.sleep(start - time.monotonic())

    def settle(self, estimated: int, used: int) -> None:
        """Corrects the estimated tokens of a request by the server's count."""
        with self._lock:
            self._next += (used - estimated) * self.per_token

    def hold(self, seconds: float) -> None:
        """Lets no request begin before `seconds` have passed."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float, why: str = "") -> None:
        """Waits, and raises Stopped as soon as the stage is stopped. A long wait is logged once for all threads."""
        if why and seconds >= TOLD:
            with self._lock:
                told, self._told = self._told, max(self._told, time.monotonic() + seconds)
            if told < time.monotonic():
                log.warning("waiting %.0f s: %s", seconds, why)
        if self.stopped.wait(max(0.0, seconds)):
            raise Stopped


def backoff(attempt: int) -> float:
    """Seconds before the next attempt: exponential backoff with jitter, so that clients do not return together."""
    return min(LONGEST_BACKOFF, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)


def retry_after(value: str | None) -> float | None:
    """Seconds in a Retry-After header: a number, a duration such as 2m59.5s, or a date; None for anything else."""
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
