"""The model that an evaluation asks: its settings, and the first question as the model reads it."""

from pathlib import Path

from sublim.chats.chat import Chat, Context, context
from sublim.core.config import Config, OmittedWhenUnset
from sublim.inference.config import Backend, renders
from sublim.residual.edits import Steering


class AskedModel(Config):
    """Settings of the model that is asked."""

    backend: Backend
    """Backend that runs the model."""
    system: str | None = None
    """System prompt; null: the default of the chat template."""
    weights_update: int | None = None
    """Update whose weights are read from the training payload; null: the last one kept."""
    steering: OmittedWhenUnset[Steering] = None
    """Edits of the residual stream while the model answers; their vectors are an input of the stage."""


def first_context(config: AskedModel, base: Path, first: Chat) -> dict[str, list[Context]]:
    """The context of the first question; none where a server renders the chats."""
    if not renders(config.backend):
        return {"contexts": []}
    from sublim.models.opening import load_tokenizer

    return {"contexts": [context(load_tokenizer(base), first)]}
