"""What an SAE is trained on: the model's own chats, number rows, a user's file; and what is held out of it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file
from sublim.core.errors import UserError
from sublim.files.text_files import Texts, load_text
from sublim.inference.config import Backend, SamplingParams

SUFFIXES = (".txt", ".jsonl", ".parquet")


class ChatTopics(Config):
    """What chats are about: a prompt is one form with one subject in it."""

    forms: Texts
    """Requests, each with the placeholder {subject}."""
    subjects: Texts
    """Nouns."""

    @field_validator("forms")
    @classmethod
    def _has_a_place(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [form for form in forms if form.count("{subject}") != 1]:
            raise ValueError(f'"{wrong[0]}" must have {{subject}} in it once')
        return forms


class WriteChatsConfig(Config):
    """Prompts of our own, answered by the model freely."""

    topics: ChatTopics
    """What they are about."""
    chats: Annotated[int, Field(ge=1)]
    """How many: prompts are gone through in an order drawn from the seed, again where there are fewer."""
    backend: Backend
    """What runs the model."""
    sampling: SamplingParams
    """How answers are drawn; its seed draws the order of the prompts too."""
    shard: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Chats between two saves, all that a crash loses; by default 64 without a GPU and 4,096 with one."""


class ImportTextsConfig(Config):
    """A user's own texts, known by what is in the file."""

    path: RunOnly[Path]
    """.txt with one text a line, .jsonl with `text` or `prompt` and `answer`, or .parquet with the same columns."""
    longest: Annotated[int, Field(ge=16)] = 2000
    """Characters of a text; longer ones are cut into pieces."""

    def identity(self) -> dict[str, Any]:
        """The fields that bear identity and, in the path's place, the digest of the file."""
        path = self.path.expanduser()
        if not path.is_file() or path.suffix not in SUFFIXES:
            raise UserError(f"{self.path} is not there, or is none of {', '.join(SUFFIXES)}: give a file of texts")
        return super().identity() | {"content": digest_file(path)}


class GatherTextsConfig(Config):
    """Rows of several sources as one file, some of them held out."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the prompts (of the texts, where they have none) whose rows no SAE is trained on."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Chooses them."""


def bundled_topics() -> ChatTopics:
    """The topics that come with the installation."""
    return load_text(ChatTopics, "chats")
