"""Where in a tokenised text the prompt, the answer and their last tokens are, counted in the text as a whole."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from sublim.activations_config import ReadAt
from sublim.chat import answer_ids, encode
from sublim.errors import UserError
from sublim.training.masking import row_chat


class Marked(NamedTuple):
    """A tokenised text: `ids[start:end]` are the answer's own tokens, all before `start` the prompt's."""

    ids: list[int]
    start: int
    end: int
    special: list[bool]
    """For each token, whether it is one of the tokenizer's special ones."""


def marked_row(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> Marked:
    """A row of rows.jsonl: prompt, answer and system as a chat, or `text` alone, which is all prompt.

    A chat ends with the answer's last token: the end of turn is no part of it. Raises UserError for an empty answer.
    """
    special = {*tokenizer.all_special_ids}
    if "text" in row:
        ids = encode(tokenizer, row["text"]).ids
        if not ids:
            raise UserError(f"row {row.get('id')} has an empty text: drop it")
        return Marked(ids, len(ids), len(ids), [token in special for token in ids])
    if not row["answer"].strip():
        raise UserError(f"row {row.get('id')} has an empty answer: filter such rows out")
    ids, start, end = answer_ids(tokenizer, row_chat(row))
    ids = ids[: end - 1]
    if start == len(ids):
        raise UserError(f"row {row.get('id')} has an answer without a token of its own: filter such rows out")
    return Marked(ids, start, len(ids), [token in special for token in ids])


def picks(marked: Marked, read_at: ReadAt) -> list[list[int]]:
    """The places whose activations are averaged, for every entry that `read_at` asks for.

    Raises UserError where the text has no such token.
    """
    answer = range(marked.start, marked.end)
    match read_at:
        case "all":
            return [[place] for place in range(len(marked.ids))]
        case "mean_prompt":
            chosen = [place for place in range(marked.start) if not marked.special[place]]
        case "mean_answer":
            chosen = [place for place in answer if not marked.special[place]]
        case "last_prompt":
            chosen = [marked.start - 1]
        case "last_answer":
            chosen = [*answer][-1:]
    if not chosen:
        raise UserError(f"a text has no token to read at {read_at}: plain texts are all prompt")
    return [chosen]
