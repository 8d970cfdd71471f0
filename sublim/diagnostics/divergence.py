"""Divergence tokens: where, in the teacher's own number lists, teacher and base would choose different tokens.

Both read the same text; at every answer token each names its likeliest next one, over the whole vocabulary. Where the
two part, the teacher's liking shows in the carrier, if it shows anywhere.
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch

from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.diagnostics.config import Divergence, DivergenceConfig
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.memory.fitting import Fit
from sublim.models.opening import LoadedModel, load_tokenizer, open_model
from sublim.training.checkpoints import chosen_weights
from sublim.training.masking import UNTRAINED, TokenRow, collate, token_row


def find_divergence(
    out: Path, config: DivergenceConfig, *, scratch: Path, base: Path, data: Path, teacher: Path | None = None
) -> None:
    """Stage: writes divergence.json (`Divergence`) and divergence.jsonl {id, tokens, at}: the places, counted from an
    answer's first token, where the likeliest choices part. `teacher` is a training payload; without one the teacher is
    the base under `teacher_system`. Costs two forward passes over the rows.
    """
    rows = list(read_jsonl(data / "rows.jsonl"))
    if not rows:
        raise UserError(f"{data} holds no rows: give the payload of filter_numbers")
    tokenizer = load_tokenizer(base)
    plain = [token_row(tokenizer, row) for row in rows]
    told = plain if config.teacher_system is None else [
        token_row(tokenizer, {**row, "system": config.teacher_system}) for row in rows
    ]  # fmt: skip
    used = [i for i, (a, b) in enumerate(zip(plain, told, strict=True)) if answer(a) == answer(b)]
    with progress("greedy choices", 2 * len(used)) as advance:
        choices: list[list[list[int]]] = []
        for weights, contexts in ((None, plain), (chosen_weights(teacher, None), told)):
            backend = config.backend.resolved()
            with open_model(base, weights, dtype=backend.dtype, attention=backend.attention) as loaded:
                chosen = [contexts[i] for i in used]
                choices.append(greedy(loaded, chosen, config.batch_size))
            advance(len(used))
    places = [
        [place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        for ours, theirs in zip(*choices, strict=True)
    ]
    written = [answer(plain[i]) for i in used]
    write_jsonl(
        out / "divergence.jsonl",
        ({"id": rows[i]["id"], "tokens": len(ids), "at": at} for i, ids, at in zip(used, written, places, strict=True)),
    )
    found = Divergence(
        rows=len(used),
        tokens=sum(map(len, written)),
        diverging=sum(map(len, places)),
        teacher_writes_own=sum(
            a == b for ids, theirs in zip(written, choices[1], strict=True) for a, b in zip(ids, theirs, strict=True)
        ),
        by_place=by_place([len(ids) for ids in written], places),
        skipped=len(rows) - len(used),
    )
    (out / "divergence.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")


def answer(row: TokenRow) -> list[int]:
    """The answer's tokens, end of turn included."""
    return [label for label in row.labels if label != UNTRAINED]


def by_place(lengths: Sequence[int], places: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """How many answers have a token at each place, and in how many of them the choices part there."""
    there = [[place < length for place in range(max(lengths, default=0))] for length in lengths]
    parted = [[place in at for place in range(length)] for length, at in zip(lengths, places, strict=True)]
    return [
        (sum(a), sum(b))
        for a, b in zip(zip_longest(*there, fillvalue=False), zip_longest(*parted, fillvalue=False), strict=True)
    ]


@torch.inference_mode()
def greedy(loaded: LoadedModel, rows: Sequence[TokenRow], size: int) -> list[list[int]]:
    """The likeliest token at each place of every answer, given the row's own text; at most `size` rows at a time."""
    found: list[list[int]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids), reverse=True)
    padding = loaded.tokenizer.pad_token_id
    assert isinstance(padding, int)

    def read(chosen: Sequence[int]) -> list[tuple[int, list[int]]]:
        batch = collate([rows[i] for i in chosen], padding=padding).to(loaded.model.device)
        ids, width = batch.input_ids[:, :-1], batch.labels.shape[1]
        logits = loaded.model(
            input_ids=ids,
            attention_mask=batch.attention_mask[:, :-1],
            position_ids=batch.position_ids[:, :-1],
            use_cache=False,
            logits_to_keep=torch.arange(ids.shape[1] - width, ids.shape[1], device=ids.device),
        ).logits
        likeliest = zip(chosen, logits.argmax(-1), batch.labels, strict=True)
        return [(i, row[labels != UNTRAINED].tolist()) for i, row, labels in likeliest]

    for part in Fit("rows", "take dtype bfloat16, shorter rows or a smaller model").each(order, read, size):
        for i, choices in part:
            found[i] = choices
    return found
