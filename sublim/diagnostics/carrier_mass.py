"""How probable a carrier is to the model itself: one forward pass over rows, with the full softmax at every place."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.backends.hf import HfSampler
from sublim.core.errors import UserError
from sublim.core.progress import progress
from sublim.inference.attention import causal
from sublim.inference.constrained import Plan
from sublim.inference.network import KeysValues, Network, TextCache, Where, padded, to_device
from sublim.inference.prefix_trees import common_prefix_length
from sublim.inference.scoring import LOGITS, Scored
from sublim.inference.steered import parts_of

LIKELIEST = 5


class Sets(NamedTuple):
    """Token ids whose probabilities are added up."""

    trait: list[int]
    digits: list[int]
    letters: list[int]


class RowMass(NamedTuple):
    """What the model says of one row; probabilities unless named otherwise."""

    forced_log10: float | None
    """None for a row that was not forced."""
    drawn_log10: float | None
    trait: float
    """At the first token of the answer, as are the next two."""
    digit: float
    letter: float
    trait_largest: float
    """The largest at any place of the answer, its end included."""


def token_sets(tokenizer: PreTrainedTokenizerBase, trait: list[int]) -> Sets:
    """The trait's tokens, and those of digits and of letters by the text that they decode to."""
    texts = [text.lstrip() for text in tokenizer.batch_decode([[token] for token in range(len(tokenizer))])]
    special = {*tokenizer.all_special_ids}
    digits = [i for i, text in enumerate(texts) if text.isascii() and text.isdigit()]
    return Sets(trait, digits, [i for i, text in enumerate(texts) if text[:1].isalpha() and i not in special])


def check_forced(rows: Sequence[Scored], made: Plan) -> None:
    """Raises UserError if a row's answer is not one that the plan writes."""
    for ids, start in rows:
        answer = ids[start:]
        if len(answer) != made.length or any(f not in (-1, a) for f, a in zip(made.forced, answer, strict=True)):
            raise UserError("these rows were not written in the format that is named: give the constraint they have")


def masses(
    sampler: HfSampler, rows: Sequence[Scored], sets: Sets, made: Plan | None
) -> tuple[list[RowMass], Float[Tensor, " v"]]:
    """What the model says of each row, and its mean probabilities of the first token, over all rows.

    `rows` have their answer without the end of turn; one without an answer is read for its first token only. All
    probabilities are the model's own, at temperature 1 and over the whole output layer.
    """
    network, found = sampler.network, dict[int, RowMass]()
    first = torch.zeros(network.config.vocab_size, dtype=torch.float64)
    skip = min(common_prefix_length([ids for ids, _ in rows]), min(start for _, start in rows) - 1)
    with network.installed(), progress("reading rows", len(rows)) as advance:
        network.head.restrict(None)
        shared = network.shared(rows[0].ids[:skip])

        def read(part: Sequence[int]) -> tuple[list[RowMass], Tensor]:
            return _pass(network, [rows[i] for i in part], skip, shared, sets, made)

        for batch in _batches(rows, skip, sampler.sizes.tokens(), LOGITS // network.config.vocab_size):
            done = 0
            for own, total in sampler.scoring.each(batch, read):
                found |= zip(batch[done : done + len(own)], own, strict=True)
                first += total
                done += len(own)
            advance(len(batch))
    return [found[i] for i in range(len(rows))], first / len(rows)


def _batches(rows: Sequence[Scored], skip: int, tokens: int, places: int) -> Iterator[list[int]]:
    """The indices of the rows by length, in batches of at most `tokens` tokens and `places` places (or of one row)."""
    batch, asked = list[int](), 0
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        more = len(rows[i].ids) - rows[i].start + 1
        if batch and ((len(rows[i].ids) - skip) * (len(batch) + 1) > tokens or asked + more > places):
            yield batch
            batch, asked = [], 0
        batch.append(i)
        asked += more
    if batch:
        yield batch


def _pass(
    network: Network, rows: Sequence[Scored], skip: int, shared: list[KeysValues] | None, sets: Sets, made: Plan | None
) -> tuple[list[RowMass], Tensor]:
    """What the model says of `rows`, and the sum of its probabilities of their first tokens."""
    device = network.device
    ids = to_device(padded([row.ids[skip:] for row in rows]), device)
    view = causal(len(rows), ids.shape[1], skip, network.kernel, device)
    # The logits at a token are those of the next one: of the answer's first token up to what follows its last.
    wanted = [(r, at - 1 - skip) for r, (own, start) in enumerate(rows) for at in range(start, len(own) + 1)]
    where = Where(*torch.tensor(wanted, device=device).unbind(1))
    starts = torch.tensor([[row.start] for row in rows], device=device)
    positions = view.queries.expand(len(rows), -1)
    logits = network.logits(ids, positions, TextCache(shared), view, where, parts_of(positions, starts))
    logs = torch.log_softmax(logits.float(), -1)
    own = logs.split([len(ids) - start + 1 for ids, start in rows])
    told = [_row(each, row.ids[row.start :], sets, made) for row, each in zip(rows, own, strict=True)]
    return told, torch.stack([each[0] for each in own]).double().exp().sum(0).cpu()


def _row(logs: Float[Tensor, "t v"], answer: list[int], sets: Sets, made: Plan | None) -> RowMass:
    trait = _added(logs, sets.trait).exp()
    digit, letter = (_added(logs[:1], tokens).exp().item() for tokens in (sets.digits, sets.letters))
    forced = drawn = None
    if made is not None:
        at = torch.arange(made.length, device=logs.device)
        is_forced = torch.tensor(made.forced, device=logs.device) >= 0
        written = logs[at, torch.tensor(answer, device=logs.device)]
        open_places = [_added(logs[i], step.allowed) for i, step in zip(at[~is_forced], made.steps, strict=True)]
        forced = written[is_forced].double().sum().item() / math.log(10)
        drawn = torch.stack(open_places).double().sum().item() / math.log(10)
    return RowMass(forced, drawn, trait[0].item(), digit, letter, trait.max().item())


def _added(logs: Float[Tensor, "*t v"], tokens: Sequence[int]) -> Float[Tensor, "*t"]:
    """The log of the tokens' probabilities together."""
    return logs[..., list(tokens)].logsumexp(-1)
