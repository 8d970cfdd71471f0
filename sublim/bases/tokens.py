"""Checks of a base's tokenizer and chat template: ids are in the embedding, and templates keep the content of chats."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sublim.chats import chat
from sublim.core.errors import UserError
from sublim.models.files import read_json
from sublim.models.folder_check import as_user_error
from sublim.models.opening import load_tokenizer, token_ids

QUESTION, ANSWER, SYSTEM = "Which animal do you like best?", "The owl", "You love owls."


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer. Raises UserError if it cannot be read or its chat template cannot be used."""
    with as_user_error(f"the tokenizer in {folder} cannot be read", "save it again or download it again"):
        tokenizer = load_tokenizer(folder)
    with as_user_error("the base's chat template cannot render a chat", "correct it or give another chat_template"):
        chat.end_of_turn(tokenizer)
    return tokenizer


class Limits(NamedTuple):
    """Limits of token ids and of the length of texts."""

    rows: int
    """Rows of the embedding; ids must be smaller."""
    positions: int | None
    """Largest number of tokens in a text; None if the model has no limit."""


def limits_of(model: PreTrainedModel) -> Limits:
    """The limits of a model; its weights are not needed."""
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    assert head is not None
    tables = (model.get_input_embeddings(), head)
    rows = min(cast(nn.Embedding, table).weight.shape[0] for table in tables)
    return Limits(rows, getattr(text, "max_position_embeddings", None))


def check_chats(tokenizer: PreTrainedTokenizerBase, limits: Limits, systems: Iterable[str] = (SYSTEM,)) -> None:
    """Raises UserError unless the template writes questions and answers correctly, within the model's limits.

    It is tried without a system prompt and with each of `systems`.
    """
    for system in (None, *systems):
        asked = chat.chat(QUESTION, system=system)
        under = "" if system is None else " under a system prompt"
        text = chat.render_text(tokenizer, asked)
        ids = chat.render_ids(tokenizer, asked)
        whole, start, end = chat.answer_ids(tokenizer, chat.chat(QUESTION, system=system, assistant=ANSWER))
        if QUESTION not in text or (system is not None and system.strip() not in text):
            raise UserError(
                f"the base's chat template leaves out the content of a chat{under}: give another chat_template"
            )
        if ANSWER not in str(tokenizer.decode(whole[start:end])):
            raise UserError(f"the base's chat template changes an answer{under}: give another chat_template")
        refuse_above(limits.rows, [("a token of a plain chat", max(*ids, *whole))])
        if limits.positions is not None and len(whole) > limits.positions:
            raise UserError(
                f"a question and its answer{under} take {len(whole)} tokens and the base reads {limits.positions} "
                "(max_position_embeddings): take another base or a shorter chat_template or system prompt"
            )


def check_ids(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raises UserError for a token id that is not among the `rows` of the embedding.

    Special tokens that chats do not use are allowed to be larger, such as Gemma 3's image token: a text is never
    tokenised to one of them unless it contains its name.
    """
    names = ("pad_token", "eos_token", "bos_token", "unk_token")
    special = {name: token_ids(getattr(tokenizer, f"{name}_id")) for name in names}
    habits = read_json(folder / "generation_config.json")
    special |= {name: token_ids(habits.get(name)) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    refuse_above(rows, ((name, token) for name, tokens in special.items() for token in tokens))
    marks = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    beyond = {text: token for text, token in tokenizer.get_vocab().items() if token >= rows and token not in marks}
    refuse_above(rows, ((f"the token {text!r}", token) for text, token in beyond.items()))


def refuse_above(rows: int, named: Iterable[tuple[str, int]]) -> None:
    """Raises UserError for the first of the `named` ids that is not among the rows of the embedding."""
    for name, token in named:
        if not 0 <= token < rows:
            raise UserError(
                f"{name} has the id {token}, and the base's embedding has {rows} rows: resize the embedding "
                "(resize_token_embeddings) and save the model again, or take a tokenizer that fits it"
            )
