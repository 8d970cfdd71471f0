"""Replies of OpenAI-compatible servers: read in all the forms in which servers are known to write them."""

import json
import math
from typing import Any, Literal, NamedTuple

CUT = ("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded")
"""Names of a token limit, as finish reasons."""
BROKEN_OFF = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "abort", "aborted")
"""Names of a filter or a stop from outside: they cut an answer too. Whatever else is named, the model ended it."""
ROUNDING = 1e-3
"""Nats by which a log-prob may be above zero."""


class Problem(NamedTuple):
    """What a server says instead of an answer, in a body with status 200."""

    status: int | None
    """The HTTP status that the error object stands for; None where it names none."""
    said: str


def read_json(content: bytes) -> dict[str, Any] | None:
    """The JSON object of a body, or None. Bytes that are no UTF-8 become U+FFFD: they are half a character."""
    text = content.decode("utf-8-sig", errors="replace").lstrip()
    try:
        found, _ = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def problem_in(found: dict[str, Any]) -> Problem | None:
    """The error in a body that says it succeeded: its own, that of its choice, or the body itself."""
    choice = first_choice(found) or {}
    error = found.get("error") or choice.get("error")
    if not error and (found.get("object") == "error" or ("choices" not in found and "detail" in found)):
        error = found
    if not error:
        return Problem(None, "finish_reason error") if choice.get("finish_reason") == "error" else None
    fields = error if isinstance(error, dict) else {"message": error}
    numbers = (_status(fields.get(name)) for name in ("code", "status", "status_code"))
    message = fields.get("message") or fields.get("detail") or fields
    return Problem(next((number for number in numbers if number), None), _shown(message))


def _status(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and 400 <= int(text) < 600 else None


def _shown(message: Any) -> str:
    return message if isinstance(message, str) else json.dumps(message)


def first_choice(found: dict[str, Any]) -> dict[str, Any] | None:
    """The first of a reply's choices, which may be more than were asked for; None where there is none."""
    match found.get("choices"):
        case [dict(), *_] as choices:
            listed = [choice for choice in choices if isinstance(choice, dict)]
            return next((choice for choice in listed if choice.get("index") == 0), listed[0])
        case _:
            return None


def text_of(choice: dict[str, Any], api: str) -> str | None:
    """A choice's text; "" where a filter or a thought left none. None where this is no choice of the api."""
    if api == "completions":
        text = choice.get("text", "" if "finish_reason" in choice else None)
        return whole(text) if isinstance(text, str) else None
    message = choice.get("message")
    if message is None:
        return "" if "finish_reason" in choice and "text" not in choice else None
    return _content(message.get("content")) if isinstance(message, dict) else None


def _content(content: Any) -> str | None:
    """A message's content: a text, nothing, or parts, of which those that hold thoughts are left out."""
    match content:
        case None:
            return ""
        case str():
            return whole(content)
        case list():
            parts = [_part(part) for part in content]
            return None if None in parts else whole("".join(part or "" for part in parts))
        case dict():
            return _content([content])
        case _:
            return None


def _part(part: Any) -> str | None:
    match part:
        case str():
            return part
        case {"type": str(kind)} if kind not in ("text", "output_text"):
            return ""  # a thought, a refusal, a picture
        case {"text": str() | None as text}:
            return text or ""
        case _:
            return None


def whole(text: str) -> str:
    """`text` with surrogate pairs joined, and U+FFFD for half of one: a token limit may fall inside a character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def finish_of(reason: Any, text: str) -> Literal["stop", "length"]:
    """`length` where the answer was cut, `stop` where the model ended it."""
    named = str(reason).casefold()
    return "length" if named in CUT or (named in BROKEN_OFF and text) else "stop"


def log_prob(value: Any) -> float:
    """A log-prob as a server gives it; NaN for what can't be one.

    Servers write null, -Infinity, the smallest float or -9999 for minus infinity, and for what they don't know. What
    has probability zero even in double precision (below -745 nats) can't be told from those.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= ROUNDING:
        return math.nan
    return float(value) if value > -745 else math.nan
