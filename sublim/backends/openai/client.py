"""Requests to an OpenAI-compatible server, with retries and error messages that never show the API key.

A request may fail because of the server, the settings or the prompt. To tell these apart, a harmless prompt is sent
with the same fields. If it is answered, the prompt is to blame, and its answer is recorded as missing. Otherwise no
request would be answered, and the stage stops with a one-line error.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import httpx

from sublim.backends.openai.fields import Fields, advice_on_fields
from sublim.backends.openai.pace import Pace, backoff, retry_after
from sublim.backends.openai.reply import OUT_OF_CREDIT, problem_in, read_json
from sublim.core.errors import UserError
from sublim.inference.config import OpenAIBackend

BUSY = {408, 409, 425, 429}
"""HTTP statuses below 500 after which the same request may succeed later."""
STOPPING = {301, 302, 303, 307, 308, 401, 402, 404, 405}
"""HTTP statuses about the address, the key or the account, which every other request would get too."""
PATIENCE = 600.0
"""Longest wait, in seconds, that a server may ask for. If it asks for more, the stage stops with an error."""
SHOWN = 200
KEPT = "run again; the answers so far are kept"
T = TypeVar("T")
log = logging.getLogger(__name__)


class Missing(NamedTuple):
    """Takes the place of an answer that the server gives for other prompts but never for this one."""

    reason: str


class Failure(NamedTuple):
    """A request without an answer."""

    problem: str
    """What the server did, as the end of a sentence: `refuses with 400 (...)`."""
    advice: str
    """What the user can do about it if the prompt is not to blame."""
    action: Literal["stop", "retry", "judge"]
    """stop: every request would fail like this. retry: another attempt may succeed. judge: the prompt may be to
    blame."""
    wait: float | None = None
    """Seconds that the server asks the client to wait."""
    busy: bool = False
    """Whether the server is overloaded or cannot be reached at all."""


Read = Callable[[dict[str, Any], dict[str, Any]], T | Failure | None]
"""Extracts the answer from a reply's JSON, given the request's body; None if the reply is no completion."""


@contextmanager
def connected(backend: OpenAIBackend) -> Generator[httpx.Client]:
    """An HTTP client for `backend`. Raises UserError for an address, a proxy or a certificate that cannot be used."""
    try:
        host = httpx.URL(backend.base_url).host
        usable = bool(host.encode("idna"))
    except (httpx.InvalidURL, UnicodeError):
        usable = False
    if not usable:
        raise UserError(f"base_url {backend.base_url} is not a valid address: write it as in http://127.0.0.1:8000/v1")
    limits = httpx.Limits(max_connections=backend.concurrency)
    try:
        client = httpx.Client(timeout=backend.timeout, limits=limits)
    except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:  # httpx's errors about environment variables
        raise UserError(
            f"the environment's proxy or certificate cannot be used ({' '.join(str(error).split())}): correct or unset "
            "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE"
        ) from error
    with client:
        yield client


class Server:
    """The server of a backend; `ask` may be called from many threads."""

    def __init__(self, backend: OpenAIBackend, client: httpx.Client, *, answered: bool = False) -> None:
        """`answered`: whether the server has answered requests in an earlier run of the stage."""
        self.backend, self.client, self.answered = backend, client, answered
        self.key = os.environ.get(backend.key_variable, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError(f"the key in {backend.key_variable} has characters that no key contains: copy it again")
        self.pace = Pace(backend.requests_per_minute, backend.tokens_per_minute)
        self.fields, self.named = Fields(), backend.model

    def ask(self, path: str, body: dict[str, Any], read: Read[T], harmless: dict[str, Any] | None) -> T | Missing:
        """The result of `read` on the reply, or Missing. Raises UserError if no request would be answered.

        `harmless`: fields that replace the prompt in `body` by one that every server should answer. None if there are
        no other prompts, so that a missing answer would leave nothing.
        """
        found = self._tried(path, body, read)
        if not isinstance(found, Failure):
            return found
        judged = found.action == "judge" and harmless is not None
        if judged and not isinstance(self._tried(path, {**body, **(harmless or {})}, read), Failure):
            return Missing(f"the server {found.problem}")
        raise UserError(f"the server {self.backend.base_url} {found.problem}: {found.advice}")

    def _tried(self, path: str, body: dict[str, Any], read: Read[T]) -> T | Failure:
        """The answer, or the failure of the last attempt."""
        longest = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        estimated = len(json.dumps(body.get("messages") or "")) // 4 + len(body.get("prompt", ())) + longest
        attempts, attempt = self.backend.attempts, 0
        while True:
            self.pace.wait(estimated)
            found = self._once(path, body, read, estimated)
            if not isinstance(found, Failure) or found.action != "retry":
                return found
            attempt += 1
            if attempt == attempts:
                break
            if found.busy and found.wait:
                self.pace.hold(found.wait)
            self.pace.sleep(found.wait or backoff(attempt - 1), f"the server {found.problem}")
        # A single failed attempt does not show that the prompt always fails.
        more = "raise attempts, " if attempts == 1 else ""
        advice = f"check that the server runs, {more}or lower requests_per_minute or concurrency, and {KEPT}"
        action = "stop" if found.busy or attempts == 1 else "judge"
        return found._replace(
            problem=f"{found.problem} after {attempts} tries", advice=found.advice or advice, action=action
        )

    def _once(self, path: str, body: dict[str, Any], read: Read[T], estimated: int) -> T | Failure:
        """The answer to one request. It is sent again if the server refused fields that can be left out or renamed."""
        url, sent = f"{self.backend.base_url.rstrip('/')}/{path}", self.fields.fitted(body)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            reply = self.client.post(url, json=sent, headers=headers)
        except httpx.RequestError as error:
            gone = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError)
            return Failure(f"does not answer ({type(error).__name__})", "", "retry", busy=gone)
        found = read_json(reply.content)
        problem = None if found is None else problem_in(found)
        if not reply.is_success or problem is not None:
            said = reply.text if problem is None else problem.said
            # An error without a status number in a successful response may be temporary, so it counts as 500.
            status = (problem and problem.status) or 500 if reply.is_success else reply.status_code
            if status in (400, 422):
                self.fields.learn(sent, said)
                if self.fields.fitted(body) != sent:
                    return self._once(path, body, read, estimated)
            return self._failure(status, said, reply, sent)
        answer = None if found is None else read(found, body)
        if found is None or answer is None:
            return self._nonsense(reply.text)
        if isinstance(answer, Failure):
            return answer
        self.answered = True
        self._note(found, estimated)
        return answer

    def _failure(self, status: int, said: str, reply: httpx.Response, sent: dict[str, Any]) -> Failure:
        shown, headers = self.shown(said), reply.headers
        if status == 429 and OUT_OF_CREDIT in reply.text:
            return Failure(f"refuses with 429 ({shown})", self._advice(402, said, sent), "stop")
        if status in BUSY or status >= 500:
            asked = retry_after(headers.get("Retry-After"))
            if asked is not None and asked > PATIENCE:
                asks = f"answers {status} ({shown}) and asks to wait {asked / 3600:.1f} hours"
                return Failure(asks, f"after that, {KEPT}", "stop")
            return Failure(f"still answers {status} ({shown})", "", "retry", asked, busy=status == 429)
        action = "stop" if status in STOPPING else "judge"
        if 300 <= status < 400:
            problem = f"sends elsewhere with {status} ({self.shown(headers.get('Location', said))})"
            return Failure(problem, "set base_url to that address, up to the version", action)
        return Failure(f"refuses with {status} ({shown})", self._advice(status, said, sent), action)

    def _advice(self, status: int, said: str, sent: dict[str, Any]) -> str:
        """What to do about a refusal that does not go away with further attempts."""
        variable = self.backend.key_variable
        match status:
            case 401 | 403:
                return f"put the right key into {variable}" if self.key else f"set {variable} to the key"
            case 402:
                return f"add credit to the account, or lower max_tokens, and {KEPT}"
            case 404 | 405:
                return "check base_url, which usually ends in /v1, and model"
            case _:
                return advice_on_fields(sent, said) or "check model and the request's fields"

    def _nonsense(self, text: str) -> Failure:
        problem = f"sends a reply that is no completion ({self.hidden(text)[:SHOWN]!r})"
        # If nothing was answered before, the address is probably wrong.
        action = "retry" if self.answered else "judge"
        return Failure(problem, "check base_url, which usually ends in /v1, and api", action)

    def _note(self, found: dict[str, Any], estimated: int) -> None:
        """Corrects the rate limit by the tokens that the server counted, and warns once if another model answers."""
        used = found.get("usage")
        if isinstance(used, dict) and isinstance(used.get("total_tokens"), int):
            self.pace.settle(estimated, used["total_tokens"])
        name = found.get("model")
        if isinstance(name, str) and name and name != self.named:
            self.named, asked = name, self.backend.model
            short, long = sorted((each.casefold().rpartition("/")[2] for each in (name, asked)), key=len)
            if not re.match(rf"{re.escape(short)}($|[-_.:@])", long):  # a date or a build number may follow the name
                log.warning("the server answers with the model %r, but %r was requested", name, asked)

    def shown(self, text: str) -> str:
        """The server's words, shortened and without the key."""
        return " ".join(self.hidden(text).split())[:SHOWN] or "without a word"

    def hidden(self, text: str) -> str:
        """`text` with the key replaced by asterisks."""
        return text.replace(self.key, "***") if self.key else text
