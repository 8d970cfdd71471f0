"""What a chat template writes after a prompt when the chat has an answer, also if it then changes the prompt."""

import re
from collections.abc import Callable, Sequence

PROBE = "ANSWER-PROBE"
# Matches the end of a thought, such as `</think>`, `[/THINK]` and Gemma 4's `<channel|>`.
CLOSED = re.compile(r"(</[^<>]+>|\[/[^\[\]]+\]|<[^<>|/]+\|>)\s*$")


def completion(prompt: str, answered: Callable[[str], str], answer: str) -> str | None:
    """The answer and its end of turn as they follow `prompt`; None if the template gives no way to tell.

    `answered` renders the chat with a given answer. Most templates write the prompt and continue it. Some leave out a
    part of the prompt once there is an answer, such as an empty thought, or a system text that is written only into the
    last user turn. Then only the answer's turn is taken from the rendered chat.
    """
    whole = answered(answer)
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    head, _, tail = answered(PROBE).rpartition(PROBE)
    if not (whole.startswith(head) and whole[len(head) :].endswith(tail)):
        return None
    # Blanks before the answer belong to its turn, unless the prompt also ends with them.
    cuts = range(len(head), len(head.rstrip()) - 1, -1)
    return next((whole[cut:] for cut in cuts if leaves_out(prompt, head[:cut])), None)


def leaves_out(prompt: str, head: str) -> bool:
    """Whether `head` is `prompt` without one piece: a piece inside it, or a closed thought at its end.

    At the end nothing else may be missing: after an open `<think>` the model would think instead of answering.
    """
    if prompt.startswith(head):
        return CLOSED.search(prompt[len(head) :]) is not None
    before, after = common_length(prompt, head), common_length(prompt[::-1], head[::-1])
    return bool(head[len(head) - after :].strip()) and not head[before : len(head) - after].strip()


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Length of the longest common prefix of two strings or two lists of tokens."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(one), len(other)))
