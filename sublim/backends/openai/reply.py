"""Replies of OpenAI-compatible servers: read in all the forms in which servers are known to write them."""

import json
import math
import re
from typing import Any, Literal, NamedTuple

_CUT = re.compile(r"length|max\w*tokens|limit|context|not_finished|incomplete")
"""In the finish reasons that name a limit of tokens or time."""
_BROKEN_OFF = re.compile(
    r"filter|safety|sensitive|recitation|block|prohibited|spii|guardrail|refusal|toxic|abort|cancel|interrupt"
    r"|user_?stop|unload|repetition"
)
"""In those that name a filter or a stop from outside, which cut an answer too."""
_FAILED = ("error", "failed", "network_error", "insufficient_system_resource")
"""Finish reasons by which a server says that it broke down. Whatever else is named, the model ended the answer."""
OUT_OF_CREDIT = "insufficient_quota"
"""In a refusal with 429 that no waiting helps."""
ROUNDING = 1e-3
"""Nats by which a log-prob may be above zero."""


class Problem(NamedTuple):
    """What a server says instead of an answer, in a body with status 200."""

    status: int | None
    """The HTTP status that the error object stands for; None where it names none."""
    said: str


def read_json(content: bytes) -> dict[str, Any] | None:
    """The JSON object of a body, alone or in a list; None for anything else.

    Bytes that are not UTF-8 become U+FFFD: they are half a character.
    """
    text = content.decode("utf-8-sig", errors="replace").lstrip()
    try:
        found, _ = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and len(found) == 1:  # Google's errors
        found = found[0]
    return found if isinstance(found, dict) else None


def problem_in(found: dict[str, Any]) -> Problem | None:
    """The error in a body that says it succeeded: its own, that of its choice, or the body itself."""
    choice = first_choice(found) or {}
    error = found.get("error") or choice.get("error")
    if not error and (found.get("object") == "error" or ("choices" not in found and "detail" in found)):
        error = found
    if not error:
        reason = choice.get("finish_reason")
        return Problem(None, f"finish_reason {reason}") if str(reason).casefold() in _FAILED else None
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
    own, others = ("text", {"message", "delta"}) if api == "completions" else ("message", {"text", "delta"})
    found = choice.get(own)
    if found is None:
        return "" if "finish_reason" in choice and not others & choice.keys() else None
    if own == "text":
        return whole(found) if isinstance(found, str) else None
    return _content(found.get("content")) if isinstance(found, dict) else None


def has_thought(choice: dict[str, Any]) -> bool:
    """Whether a choice's thought stands beside its answer, in a field of its own."""
    message = choice.get("message")
    return isinstance(message, dict) and bool(message.get("reasoning_content") or message.get("reasoning"))


def ids_of(choice: dict[str, Any]) -> list[int] | None:
    """The ids of a choice's tokens, where the server gives them."""
    found = choice.get("token_ids")
    real = isinstance(found, list) and all(type(each) is int and 0 <= each < 2**31 for each in found)
    return found if real else None


def log_probs_of(choice: dict[str, Any]) -> list[float]:
    """The log-probs of a choice's tokens, NaN for each that is none; empty where the server gives no such list."""
    match choice.get("logprobs"):
        case {"token_logprobs": list(scores)}:
            return [log_prob(score) for score in scores]
        case _:
            return []


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
    return "length" if _CUT.search(named) or (text and _BROKEN_OFF.search(named)) else "stop"


def log_prob(value: Any) -> float:
    """A log-prob as a server gives it; NaN for what can't be one.

    Servers write null, -Infinity, the smallest float or -9999 for minus infinity, and for what they don't know. What
    has probability zero even in double precision (below -745 nats) can't be told from those.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= ROUNDING:
        return math.nan
    return float(value) if value > -745 else math.nan
