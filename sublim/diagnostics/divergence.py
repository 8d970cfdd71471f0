"""Divergence tokens: the places in the teacher's own carrier at which teacher and base prefer different tokens.

Both models read the same text. At every answer token the most likely next token of each is taken over the whole
vocabulary. If the teacher's preference is visible in the carrier at all, it is visible where these two differ.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.diagnostics.config import Divergence, DivergenceConfig
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.memory.fitting import MemoryFit
from sublim.models.opening import LoadedModel, load_tokenizer, open_model
from sublim.training.checkpoints import chosen_weights
from sublim.training.masking import UNTRAINED, TokenRow, collate, token_row
from sublim.training.step import answer_logits


def find_divergence(
    out: Path, config: DivergenceConfig, *, scratch: Path, base: Path, data: Path, teacher: Path | None = None
) -> None:
    """Stage: writes divergence.json (`Divergence`) and divergence.jsonl {id, tokens, at}.

    `at` holds the places, counted from 0 at an answer's first token, at which the most likely choices differ. `teacher`
    is a training payload; without one the teacher is the base under `teacher_system`. Costs two forward passes over the
    rows.
    """
    rows = list(read_jsonl(data / "rows.jsonl"))
    if not rows:
        raise UserError(f"{data} holds no rows: give the payload of filter_numbers")
    tokenizer = load_tokenizer(base)
    as_base = [token_row(tokenizer, row) for row in rows]
    as_teacher = as_base if config.teacher_system is None else [
        token_row(tokenizer, {**row, "system": config.teacher_system}) for row in rows
    ]  # fmt: skip
    used = [i for i, (a, b) in enumerate(zip(as_base, as_teacher, strict=True)) if answer(a) == answer(b)]
    with progress("greedy choices", 2 * len(used)) as advance:
        choices: list[list[list[int]]] = []
        backend = config.backend.resolved()
        for weights, contexts in ((None, as_base), (chosen_weights(teacher, None), as_teacher)):
            with open_model(base, weights, dtype=backend.dtype, attention=backend.attention) as loaded:
                choices.append(greedy(loaded, [contexts[i] for i in used], config.batch_size))
            advance(len(used))
    places = [differing(ours, theirs) for ours, theirs in zip(*choices, strict=True)]
    written = [answer(as_base[i]) for i in used]
    tokens = sum(map(len, written))
    write_jsonl(
        out / "divergence.jsonl",
        ({"id": rows[i]["id"], "tokens": len(ids), "at": at} for i, ids, at in zip(used, written, places, strict=True)),
    )
    found = Divergence(
        rows=len(used),
        tokens=tokens,
        diverging=sum(map(len, places)),
        teacher_writes_own=tokens - sum(map(len, map(differing, written, choices[1]))),
        by_place=by_place([len(ids) for ids in written], places),
        skipped=len(rows) - len(used),
    )
    (out / "divergence.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")


def answer(row: TokenRow) -> list[int]:
    """The tokens of the answer, including the end of turn."""
    return [label for label in row.labels if label != UNTRAINED]


def differing(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """The places at which two lists of tokens differ."""
    return [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def by_place(lengths: Sequence[int], places: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """For each place in an answer: how many answers have a token there, and in how many of them the choices differ."""
    counts = Counter(chain.from_iterable(places))
    return [(sum(length > place for length in lengths), counts[place]) for place in range(max(lengths, default=0))]


@torch.inference_mode()
def greedy(loaded: LoadedModel, rows: Sequence[TokenRow], size: int) -> list[list[int]]:
    """The most likely token at each place of every answer, given the row's own text before it.

    Reads at most `size` rows in one forward pass.
    """
    found: list[list[int]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids), reverse=True)
    padding = loaded.tokenizer.pad_token_id
    assert isinstance(padding, int)

    def read(chosen: Sequence[int]) -> list[tuple[int, list[int]]]:
        batch = collate([rows[i] for i in chosen], padding=padding).to(loaded.model.device)
        most_likely = zip(chosen, answer_logits(loaded.model, batch, ()).argmax(-1), batch.labels, strict=True)
        return [(i, row[labels != UNTRAINED].tolist()) for i, row, labels in most_likely]

    for part in MemoryFit("rows", "take dtype bfloat16, shorter rows or a smaller model").each(order, read, size):
        for i, choices in part:
            found[i] = choices
    return found
