"""Fields that a server refuses: left out where that changes nothing, and otherwise named to the user."""

import logging
import re
from collections.abc import Mapping
from typing import Any

NEUTRAL = {"n": 1, "top_p": 1.0}
"""Values that say what leaving the field out says as well."""
NEEDED = ("model", "messages", "prompt")
NEW_NAME = "max_completion_tokens"
log = logging.getLogger(__name__)


class Fields:
    """What one server has been seen to refuse."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self.renamed = False

    def fitted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body` in the words that the server takes."""
        found = {name: value for name, value in body.items() if name not in self.left_out}
        if self.renamed and "max_tokens" in found:
            longest = found.pop("max_tokens")
            found.setdefault(NEW_NAME, longest)
        return found

    def learn(self, sent: Mapping[str, Any], said: str) -> None:
        """Notes what the server's refusal of `sent` says of fields whose absence or other name means the same."""
        if "max_tokens" in sent and names("max_tokens", said) and names(NEW_NAME, said) and not self.renamed:
            self.renamed = True
            log.warning("the server refuses max_tokens: sent as %s", NEW_NAME)
        for name, value in NEUTRAL.items():
            if sent.get(name) == value and names(name, said) and name not in self.left_out:
                self.left_out.add(name)
                log.warning("the server refuses %s: left out, since %s changes nothing", name, value)


def names(name: str, said: str) -> bool:
    """Whether the server's words name a field; one of a single letter only in quotes."""
    quote = r"[\"'`]" if len(name) == 1 else r"\b"
    return re.search(f"{quote}{name}{quote}", said) is not None


def refused_fields(sent: Mapping[str, Any], said: str) -> dict[str, Any]:
    """What to put into `extra` so that the fields which the server names are not sent."""
    found: dict[str, Any] = {name: None for name in sent if name not in NEEDED and names(name, said)}
    if "max_tokens" in found and NEW_NAME not in sent:
        found[NEW_NAME] = sent["max_tokens"]
    return found
