"""Request fields that a server refuses: left out if that changes nothing, otherwise reported to the user."""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

NEUTRAL = {"n": 1, "top_p": 1.0}
"""Values that are also the defaults, so that the field can be left out."""
NEEDED = ("model", "messages", "prompt", "echo", "logprobs")
NEW_NAME = "max_completion_tokens"
_TOO_LONG = re.compile(r"context|too (?:large|long)|exceed", re.IGNORECASE)
_WANTS_TEXT = re.compile(r"\bprompt\b.*\bstring\b|\bstring\b.*\bprompt\b", re.DOTALL)
log = logging.getLogger(__name__)


class Fields:
    """The fields that a server has refused so far."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self.renamed = False

    def fitted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body` without the refused fields, or with their new names."""
        found = {name: value for name, value in body.items() if name not in self.left_out}
        if self.renamed and "max_tokens" in found:
            longest = found.pop("max_tokens")
            found.setdefault(NEW_NAME, longest)
        return found

    def learn(self, sent: Mapping[str, Any], said: str) -> None:
        """Learns from the server's refusal of `sent`, in the words `said`, which fields to leave out or to rename."""
        both = names("max_tokens", said) and names(NEW_NAME, said) and not _TOO_LONG.search(said)
        if "max_tokens" in sent and both and not self.renamed:
            self.renamed = True
            log.warning("the server refuses max_tokens: sent as %s", NEW_NAME)
        for name, value in NEUTRAL.items():
            if sent.get(name) == value and names(name, said) and name not in self.left_out:
                self.left_out.add(name)
                log.warning("the server refuses %s: left out, since %s changes nothing", name, value)


def names(name: str, said: str) -> bool:
    """Whether the server's words name a field. A name of a single letter must be in quotes."""
    quote = r"[\"'`]" if len(name) == 1 else r"\b"
    return re.search(f"{quote}{name}{quote}", said) is not None


def advice_on_fields(sent: Mapping[str, Any], said: str) -> str | None:
    """What to do about a refusal of `sent` whose words name fields; None if they name none."""
    if _TOO_LONG.search(said):
        return "lower max_tokens, or serve the model with a longer context"
    if "prompt" in sent and _WANTS_TEXT.search(said):
        return "this server accepts no token ids as a prompt: set api to chat, or use the hf or vllm backend"
    if any(name in sent and names(name, said) for name in ("echo", "logprobs")):
        return "this server returns no log-probs: do without them, or use the hf or vllm backend"
    refused: dict[str, Any] = {name: None for name in sent if name not in NEEDED and names(name, said)}
    if "max_tokens" in refused and NEW_NAME not in sent:
        refused[NEW_NAME] = sent["max_tokens"]
    return f"set backend.extra to {json.dumps(refused)}, where null leaves a field out" if refused else None
