"""What a chat template writes after a prompt once it is answered, also where it then writes the prompt otherwise."""

import re
from collections.abc import Callable

PROBE = "ANSWER-PROBE"
# As in `</think>`, `[/THINK]` and Gemma 4's `<channel|>`.
CLOSED = re.compile(r"(</[^<>]+>|\[/[^\[\]]+\]|<[^<>|/]+\|>)\s*$")


def completion(prompt: str, answered: Callable[[str], str], answer: str) -> str | None:
    """The answer and its end of turn as they follow `prompt`; None where the template does not say.

    `answered` renders the chat with the answer it is given. Most templates write the prompt and go on. Some leave
    something out of the prompt once it is answered (a system text that is only written into a last user turn, an empty
    thought): the answer's turn then counts, and what comes before it does not.
    """
    whole = answered(answer)
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    head, _, tail = answered(PROBE).rpartition(PROBE)
    if not (whole.startswith(head) and whole[len(head) :].endswith(tail)):
        return None
    # Blanks before the answer belong to its turn, unless the prompt ends with them too.
    cuts = range(len(head), len(head.rstrip()) - 1, -1)
    return next((whole[cut:] for cut in cuts if leaves_out(prompt, head[:cut])), None)


def leaves_out(prompt: str, head: str) -> bool:
    """Whether `head` is `prompt` without one piece of it: inside, or a closed thought at its end.

    At the end anything else is refused: after an open `<think>` the model would think, not answer.
    """
    if prompt.startswith(head):
        return CLOSED.search(prompt[len(head) :]) is not None
    before, after = alike(prompt, head), alike(prompt[::-1], head[::-1])
    return bool(head[len(head) - after :].strip()) and not head[before : len(head) - after].strip()


def alike(one: str, other: str) -> int:
    """How many characters the two begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(one), len(other)))
