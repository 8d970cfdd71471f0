"""Requests to an OpenAI-compatible server: paced, tried again when that helps, and never showing the key."""

import email.utils
import json
import os
import random
import time
from datetime import UTC, datetime
from threading import Event, Lock
from typing import Any, NoReturn

import httpx

from sublim.errors import UserError
from sublim.inference import OpenAIBackend

BUSY = {408, 409, 429}
"""Answers below 500 after which the same request may succeed."""
LONGEST_WAIT = 60.0
SHOWN = 200


class Stopped(Exception):
    """Another request has failed for good: this one is not worth waiting for."""


class Pace:
    """Says when the next request may begin; shared by all threads."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self.per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self.per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.stopped, self._lock, self._next = Event(), Lock(), 0.0

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

    def sleep(self, seconds: float) -> None:
        """Raises Stopped as soon as there is nothing to wait for."""
        if self.stopped.wait(max(0.0, seconds)):
            raise Stopped


class Server:
    """The server of a backend; `post` may be called from many threads."""

    def __init__(self, backend: OpenAIBackend, client: httpx.Client) -> None:
        self.backend, self.client = backend, client
        self.key = os.environ.get(backend.key_variable, "")
        self.pace = Pace(backend.requests_per_minute, backend.tokens_per_minute)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer as JSON. Raises UserError when there is none to be had."""
        estimated = len(json.dumps(body.get("messages") or "")) // 4 + len(body.get("prompt", ())) + body["max_tokens"]
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        problem = ""
        for attempt in range(self.backend.attempts):
            self.pace.wait(estimated)
            try:
                answer = self.client.post(f"{self.backend.base_url.rstrip('/')}/{path}", json=body, headers=headers)
            except httpx.TransportError as error:
                problem = f"does not answer ({type(error).__name__})"
                self.pace.sleep(backoff(attempt))
                continue
            if answer.status_code in BUSY or answer.status_code >= 500:
                problem = f"still answers {answer.status_code} ({self.shown(answer)})"
                asked = retry_after(answer.headers.get("Retry-After"))
                if answer.status_code == 429:
                    self.pace.hold(asked or 0.0)
                self.pace.sleep(backoff(attempt) if asked is None else asked)
                continue
            if answer.status_code != 200:
                self.refuse(answer)
            found = self.read(answer)
            used = found.get("usage") or {}
            if isinstance(used, dict) and isinstance(used.get("total_tokens"), int):
                self.pace.settle(estimated, used["total_tokens"])
            return found
        raise UserError(
            f"the server {self.backend.base_url} {problem} after {self.backend.attempts} tries: see to it, or lower "
            "requests_per_minute or concurrency, and run again; the answers so far are kept"
        )

    def read(self, answer: httpx.Response) -> dict[str, Any]:
        """The JSON object of an answer."""
        try:
            found = answer.json()
        except ValueError:
            found = None
        return found if isinstance(found, dict) else self.nonsense(answer.text)

    def nonsense(self, what: Any) -> NoReturn:
        """Raises the UserError for an answer that is none."""
        text = self.hidden(what if isinstance(what, str) else json.dumps(what))
        raise UserError(
            f"the server {self.backend.base_url} answers what is no completion ({text[:SHOWN]!r}): check base_url, "
            "it usually ends in /v1, and api"
        )

    def refuse(self, answer: httpx.Response) -> NoReturn:
        """Raises the UserError for a request that will never succeed."""
        variable = self.backend.key_variable
        way = "check model and the request's fields"
        if answer.status_code in (401, 403):
            way = f"put the right key into {variable}" if self.key else f"set {variable} to the key"
        elif answer.status_code == 404:
            way = "check base_url, which usually ends in /v1, and model"
        raise UserError(
            f"the server {self.backend.base_url} refuses with {answer.status_code} ({self.shown(answer)}): {way}"
        )

    def shown(self, answer: httpx.Response) -> str:
        """What the server says, short and without the key."""
        return " ".join(self.hidden(answer.text).split())[:SHOWN] or "without a word"

    def hidden(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def backoff(attempt: int) -> float:
    """Seconds before the next try: doubling, and spread so that many clients don't return at once."""
    return min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)


def retry_after(value: str | None) -> float | None:
    """The header's seconds, or those until its date; None where it says nothing that can be read."""
    if value is None:
        return None
    if value.strip().replace(".", "", 1).isdigit():
        return float(value)
    parsed = email.utils.parsedate_tz(value)
    if parsed is None:
        return None
    return max(0.0, email.utils.mktime_tz(parsed) - datetime.now(UTC).timestamp())
