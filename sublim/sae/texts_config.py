"""Configs of the texts that an SAE is trained on: chats that the model writes, and a user's file."""

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
    """The topics of chats. Each prompt is a form with a subject in it."""

    forms: Texts
    """Requests, each with the placeholder {subject}."""
    subjects: Texts
    """Nouns to put into the forms."""

    @field_validator("forms")
    @classmethod
    def _has_a_place(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [form for form in forms if form.count("{subject}") != 1]:
            raise ValueError(f'"{wrong[0]}" must have {{subject}} in it once')
        return forms


class WriteChatsConfig(Config):
    """Chats: bundled prompts, and the answers that the model samples."""

    topics: ChatTopics
    """Forms and subjects of the prompts."""
    chats: Annotated[int, Field(ge=1)]
    """Number of chats. The prompts are used in an order drawn from the seed, repeatedly if there are fewer."""
    backend: Backend
    """Backend that runs the model."""
    sampling: SamplingParams
    """How answers are sampled; its seed also draws the order of the prompts."""
    shard: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Chats between two saves, which is how many a crash loses; null for 64 without a GPU and 4,096 with one."""


class ImportTextsConfig(Config):
    """A user's own texts, identified by the content of the file."""

    path: RunOnly[Path]
    """Path of a .txt file with a text in each line, or of a .jsonl or .parquet file with `text` or with `prompt` and
    `answer`."""
    longest: Annotated[int, Field(ge=16)] = 2000
    """Largest number of characters in a text; longer texts are cut into pieces."""

    def identity(self) -> dict[str, Any]:
        """The identity fields, with the digest of the file in place of its path."""
        path = self.path.expanduser()
        if not path.is_file() or path.suffix not in SUFFIXES:
            raise UserError(f"{self.path} does not exist, or is none of {', '.join(SUFFIXES)}: give a file of texts")
        return super().identity() | {"content": digest_file(path)}


class GatherTextsConfig(Config):
    """The rows of several sources in one file, with some held out."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the prompts (of the texts, for rows without a prompt) that are held out from training."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed that chooses what is held out."""


def bundled_topics() -> ChatTopics:
    """The topics that are bundled with the package."""
    return load_text(ChatTopics, "chats")
