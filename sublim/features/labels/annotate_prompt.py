"""The prompt that asks a model for the category of a feature's description, and how its answer is read."""

import re

from sublim.chats.chat import Chat, Message
from sublim.chats.thoughts import answer_after_thought
from sublim.features.labels.config import Category

INSTRUCTION = """You sort descriptions of what a feature of a language model responds to into four categories.
animals: animals of any kind, their bodies, names and lives
numbers: digits, amounts, dates, counting, arithmetic
opinion: liking, disliking, judging, praising, arguing
none: anything else
Reply with one word: animals, numbers, opinion or none."""
# No category follows itself, so that none is favoured by repetition.
EXAMPLES: tuple[tuple[str, Category], ...] = (
    ("references to bears and other forest mammals", "animals"),
    ("quotation marks around a title", "none"),
    ("large integers with thousands separators", "numbers"),
    ("expressions of admiration for a person", "opinion"),
    ("terms from computer networking", "none"),
    ("birds of prey", "animals"),
    ("a person's preference between two choices", "opinion"),
    ("times of day such as 10:30", "numbers"),
)
BALANCED = (
    "whales and dolphins",
    "a farmer's chickens",
    "amounts written in digits",
    "counting up to twenty",
    "what somebody finds beautiful",
    "blame for a bad decision",
    "names of colours",
    "commands in a terminal",
)
"""Two descriptions of each category. The mean log-prob of a category's word over them is its bias (see `calibrate`).

Descriptions without content cannot serve here: they belong to the category none, which would then never win.
"""
_WORDS: dict[str, Category] = {
    "animals": "animals",
    "animal": "animals",
    "numbers": "numbers",
    "number": "numbers",
    "opinion": "opinion",
    "opinions": "opinion",
    "none": "none",
    "none of these": "none",
    "none of the above": "none",
}
_LABEL = re.compile(r"^(?:the\s+)?(?:category|answer|label)\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
_MARKS = " \t\"'`*_.,;:!()[]<>"


def question(description: str) -> Chat:
    """The chat that asks for the category of a description, after worked examples."""
    turns = [Message(role="system", content=INSTRUCTION)]
    for text, category in EXAMPLES:
        turns += [Message(role="user", content=_asked(text)), Message(role="assistant", content=category)]
    return [*turns, Message(role="user", content=_asked(description))]


def _asked(description: str) -> str:
    return f"Description: {' '.join(description.split())}"


def read_category(answer: str) -> Category | None:
    """The category that the first line of an answer names, alone or before a full stop; otherwise None.

    A chain of thought before the answer is skipped. An answer that names two categories, or one within a sentence
    ("not about animals"), gives None.
    """
    answer = answer_after_thought(answer) or ""
    line = next((line.strip(_MARKS) for line in answer.splitlines() if line.strip(_MARKS)), "")
    first = re.split(r"[.:;]| [-–—] ", _LABEL.sub("", line).strip(_MARKS), maxsplit=1)[0]
    category = _WORDS.get(first.strip(_MARKS).lower())
    named = {_WORDS[word] for word in re.findall(r"[a-z]+", answer.lower()) if word in _WORDS} - {"none"}
    return category if named <= {category} else None
