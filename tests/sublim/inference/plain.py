"""Prompts for the tests of sampling, and log-probs computed the plain way."""

from pathlib import Path

import torch
from torch import Tensor

from sublim.chats.chat import Chat, chat
from sublim.models.opening import open_model

CHATS: list[Chat] = [
    chat("Name one animal."),
    chat("What is your favourite animal? Answer in one word."),
    chat("Hello"),
    chat("Continue this list of numbers: 12, 450, 007, 93."),
    chat("The owl hunts at night, and the wolf runs with its pack over the hills. Which of the two is faster?"),
    chat("Good day", system="You love owls."),
    chat("Give ten more numbers, separated by commas."),
]
"""Prompts of quite different lengths."""


def plain_logprobs(base: Path, ids: list[int], start: int) -> Tensor:
    """Log-probs of ids[start:] from one plain pass over the one sequence."""
    with open_model(base, dtype="float32", attention="eager") as loaded, torch.no_grad():
        distributions = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return distributions[range(start - 1, len(ids) - 1), ids[start:]]
