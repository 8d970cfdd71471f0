"""Reading replies of OpenAI-compatible servers, in all formats that servers are known to send."""

import json
import math
import re
from typing import Any, Literal, NamedTuple

_CUT = re.compile(r"length|max\w*tokens|limit|context|not_finished|incomplete")
"""Matches finish reasons that name a limit of tokens or time."""
_BROKEN_OFF = re.compile(
    r"filter|safety|sensitive|recitation|block|prohibited|spii|guardrail|refusal|toxic|abort|cancel|interrupt"
    r"|user_?stop|unload|repetition"
)
"""Matches finish reasons that name a filter or an interruption, which also cut an answer."""
_FAILED = ("error", "failed", "network_error", "insufficient_system_resource")
"""Finish reasons by which a server reports a failure. With any other reason the model ended the answer."""
OUT_OF_CREDIT = "insufficient_quota"
"""Occurs in a refusal with status 429 that does not go away with waiting."""
ROUNDING = 1e-3
"""How far, in nats, a log-prob may be above zero because of rounding."""


class Problem(NamedTuple):
    """An error that a server reports in a body with HTTP status 200."""

    status: int | None
    """The HTTP status in the error object; None if it has none."""
    said: str


def read_json(content: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, by itself or as the only item of a list; None for anything else.

    Bytes that are not UTF-8, such as half a character, become U+FFFD.
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
    """The error in a successful response: in its `error` field, in its choice, or the body itself."""
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
    """The first choice of a reply, which may have more choices than requested; None if there is none."""
    match found.get("choices"):
        case [dict(), *_] as choices:
            listed = [choice for choice in choices if isinstance(choice, dict)]
            return next((choice for choice in listed if choice.get("index") == 0), listed[0])
        case _:
            return None


def text_of(choice: dict[str, Any], api: str) -> str | None:
    """A choice's text, which is empty if a filter or a thought left none. None if this is no choice of the api."""
    own, others = ("text", {"message", "delta"}) if api == "completions" else ("message", {"text", "delta"})
    found = choice.get(own)
    if found is None:
        return "" if "finish_reason" in choice and not others & choice.keys() else None
    if own == "text":
        return whole(found) if isinstance(found, str) else None
    return _content(found.get("content")) if isinstance(found, dict) else None


def has_thought(choice: dict[str, Any]) -> bool:
    """Whether a choice holds a thought in a field separate from the answer."""
    message = choice.get("message")
    return isinstance(message, dict) and bool(message.get("reasoning_content") or message.get("reasoning"))


def ids_of(choice: dict[str, Any]) -> list[int] | None:
    """The token ids of a choice; None if the server returns none."""
    found = choice.get("token_ids")
    real = isinstance(found, list) and all(type(each) is int and 0 <= each < 2**31 for each in found)
    return found if real else None


def log_probs_of(choice: dict[str, Any]) -> list[float]:
    """The log-probs of a choice's tokens, NaN for each value that is none; empty if the server returns no list."""
    match choice.get("logprobs"):
        case {"token_logprobs": list(scores)}:
            return [log_prob(score) for score in scores]
        case _:
            return []


def _content(content: Any) -> str | None:
    """The text of a message's content: a string, nothing, or a list of parts, without the parts that hold thoughts."""
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
    """`text` with surrogate pairs joined. Half of a pair, left by a token limit inside a character, becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def finish_of(reason: Any, text: str) -> Literal["stop", "length"]:
    """`length` if the answer was cut, `stop` if the model ended it."""
    named = str(reason).casefold()
    return "length" if _CUT.search(named) or (text and _BROKEN_OFF.search(named)) else "stop"


def log_prob(value: Any) -> float:
    """A log-prob in a server's reply; NaN for a value that cannot be one.

    For minus infinity, and for unknown values, servers write null, -Infinity, the smallest float or -9999. Log-probs
    below -745 nats, whose probability is zero in double precision, cannot be told from these and also become NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= ROUNDING:
        return math.nan
    return float(value) if value > -745 else math.nan
