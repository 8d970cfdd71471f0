"""Thoughts before an answer: finding where the answer begins in the output of a reasoning model."""

import re

_NAMES = r"(?:seed:|antml:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad|antthinking)"
# Qwen, DeepSeek and many others; Magistral; Kimi; OpenThinker; MedGemma; Command A; gpt-oss; Gemma.
_OPEN = re.compile(
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<unused94>|<\|START_THINKING\|>"
    r"|<\|channel\|>\s*(?:analysis|commentary)|<\|channel>\s*(?:analysis|thought)",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"</{_NAMES}>|<{_NAMES}\s*/>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<unused95>|<\|END_THINKING\|>"
    r"|\[BEGIN FINAL RESPONSE\]|<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|<channel\|>",
    re.IGNORECASE,
)
# gpt-oss, if the server removed the special tokens and left the names of the channels.
_PLAIN_CHANNELS = re.compile(r"\A\s*analysis(?=\S).*assistant\s*final", re.DOTALL)
_MARK = r"(?:<\|\w+\|>|</?(?:answer|response)>)"
_MARKS = re.compile(rf"\A(?:\s*{_MARK})+\s*|(?:\s*{_MARK})+\s*\Z")
"""Matches special tokens that a server did not remove, and tags in which some models put their answer."""


def answer_after_thought(text: str) -> str | None:
    """The text after the last thought in `text`: all of it if there is no thought, "" if nothing follows.

    None if a thought begins and does not end, because words inside a thought are no answer. A thought may have just a
    closing tag, because some chat templates write the opening tag into the prompt.
    """
    start = max((found.end() for found in [*_CLOSE.finditer(text), *_PLAIN_CHANNELS.finditer(text)]), default=0)
    answer = text[start:]
    if _OPEN.search(answer):
        return None
    return _MARKS.sub("", answer) if start else answer
