"""The positions of prompt and answer in a tokenised text, and which of them are read."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from sublim.activations.config import ReadAt
from sublim.chats.chat import encode_many, many_answer_ids
from sublim.core.errors import UserError
from sublim.inference.vocabulary import Vocabulary
from sublim.training.masking import row_chat


class Marked(NamedTuple):
    """A tokenised text: the tokens before position `start` are the prompt, the others are the answer."""

    ids: list[int]
    start: int
    special: list[bool]
    """For each token, whether it is a special token."""


def marked_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[Marked]:
    """Tokenises rows of rows.jsonl.

    A row is either a chat (prompt, answer and system) or a plain `text`, which counts as prompt. A chat ends with the
    last token of the answer, without the end of turn. Raises UserError for an empty answer.
    """
    special = Vocabulary(tokenizer).special
    for row in rows:
        if "text" not in row and not row["answer"].strip():
            raise UserError(f"row {row.get('id')} has an empty answer: filter such rows out")
    chats = iter(many_answer_ids(tokenizer, [row_chat(row) for row in rows if "text" not in row]))
    texts = iter(encode_many(tokenizer, [row["text"] for row in rows if "text" in row]))
    made: list[Marked] = []
    for row in rows:
        if "text" in row:
            ids = next(texts).ids
            start = len(ids)
        else:
            ids, start, end = next(chats)
            ids = ids[: end - 1]
        if not ids or ("text" not in row and start == len(ids)):
            raise UserError(f"row {row.get('id')} has no token to read: filter such rows out")
        made.append(Marked(ids, start, [token in special for token in ids]))
    return made


def picks(marked: Marked, read_at: ReadAt) -> list[list[int]]:
    """For every entry that `read_at` asks for, the positions whose activations are averaged.

    Raises UserError if the text has no such token.
    """
    answer = range(marked.start, len(marked.ids))
    match read_at:
        case "all":
            return [[place] for place in range(len(marked.ids))]
        case "mean_prompt":
            chosen = [place for place in range(marked.start) if not marked.special[place]]
        case "mean_answer":
            chosen = [*answer]
        case "last_prompt":
            chosen = [marked.start - 1]
        case "last_answer":
            chosen = [*answer][-1:]
    if not chosen:
        raise UserError(f"a text has no token to read at {read_at}: a plain text has no answer")
    return [chosen]
