"""Questions with a model's own answers: rows that teach it nothing, for teachers that stand for no teaching at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.files.jsonl import write_jsonl
from sublim.inference.config import Backend, SamplingParams


class OwnAnswersConfig(Config):
    """Questions, and how the model answers them."""

    questions: tuple[str, ...] = Field(min_length=1)
    """Questions, each of which is one user turn."""
    backend: Backend
    """Backend that runs the model."""
    sampling: SamplingParams
    """Sampling parameters; `n` answers to each question."""


def own_answers(out: Path, config: OwnAnswersConfig, *, scratch: Path, base: Path) -> dict[str, int]:
    """Stage: writes rows.jsonl {id, prompt, answer, system} with the base's own sampled answers.

    Answers that the token limit cut are left out, since a row would end their turn where the model did not, and so are
    empty ones; the notes count them. A model trained on these rows sees its own distribution: on average there is
    nothing to learn, beyond what so few samples say by chance. Raises UserError if no answer is left.
    """
    refused = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal refused
        number = 0
        chats = [chat(question) for question in config.questions]
        with open_sampler(config.backend, base, scratch=scratch) as sampler:
            answered = sampler.sample(chats, config.sampling)
        for question, answers in zip(config.questions, answered, strict=True):
            for each in answers:
                text = each.text.strip()
                if each.finish != "stop" or not text or each.shown is not None:
                    refused += 1
                    continue
                yield {"id": number, "prompt": question, "answer": text, "system": None}
                number += 1

    written = write_jsonl(out / "rows.jsonl", rows())
    if not written:
        raise UserError(
            f"none of {refused} answers of the base ends within {config.sampling.max_tokens} tokens: raise the number "
            "of answers"
        )
    return {"rows": written, "refused": refused}
