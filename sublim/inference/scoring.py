"""Exact log-probs of given answers. Each question is read once, and answers share the tokens they begin with.

The token sequences of a question (chat plus answer) form a prefix tree. Its nodes are laid out in one row of a batch in
which each node attends to its ancestors only, so one forward pass gives the distribution after every node. The last
token of an answer is not fed. A prefix of all questions, such as a system prompt, is read once for all of them.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.chats.answered import common_length
from sublim.chats.chat import Chat, Message, many_answer_ids, render_ids, render_text
from sublim.inference.attention import View
from sublim.inference.network import KeysValues, Network, TextCache, Where
from sublim.inference.steered import part_of
from sublim.memory.fitting import Fit

LOGITS = 2**26
"""Largest number of logits in memory at a time."""


class Scored(NamedTuple):
    """A token sequence whose tokens from `start` on are scored."""

    ids: list[int]
    start: int


class Tree(NamedTuple):
    """The prefix tree of one question's sequences, without the prefix that all questions share."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    parts: list[int]
    """Whether each token is in the prompt, its last token, or in the answer; for steering."""
    wanted: list[list[tuple[int, int]]]
    """For every sequence and each of its scored tokens: the node before the token, and the token."""


def tree(sequences: Sequence[Scored], skip: int) -> Tree:
    """The prefix tree of `sequences` without their first `skip` tokens; parents come before their children."""
    made = Tree([], [], [], [], [])
    children: dict[tuple[int, int], int] = {}
    for ids, start in sequences:
        node, wanted = -1, list[tuple[int, int]]()
        for place in range(skip, len(ids)):
            if place >= start:
                wanted.append((node, ids[place]))
            if place + 1 == len(ids):
                break
            step = node, ids[place]
            if step not in children:
                children[step] = len(made.tokens)
                made.tokens.append(ids[place])
                made.parents.append(node)
                made.depths.append(place)
                made.parts.append(part_of(place, start))
            node = children[step]
        made.wanted.append(wanted)
    return made


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix of all sequences."""
    return common_length(min(map(list, sequences)), max(map(list, sequences)))


def score(
    network: Network, questions: Sequence[Sequence[Scored]], tokens: int, fit: Fit
) -> Iterator[tuple[int, list[list[float]]]]:
    """(index of the question, log-probs of its sequences), in the order of their lengths, which needs least padding.

    A batch has about `tokens` tokens; `fit` halves a batch that does not fit into memory.
    """
    everything = [sequence for question in questions for sequence in question]
    if not everything:
        yield from ((index, []) for index in range(len(questions)))
        return
    # The token before the first scored one must stay in every tree, because its distribution is needed.
    skip = min(common_prefix_length([ids for ids, _ in everything]), min(start for _, start in everything) - 1)
    shared = fit.whole(1, lambda _: network.shared(everything[0].ids[:skip]))
    trees = [tree(question, skip) for question in questions]
    order = sorted(range(len(trees)), key=lambda index: len(trees[index].tokens))
    batch, asked = list[tuple[int, Tree]](), 0

    def read(part: Sequence[tuple[int, Tree]]) -> list[tuple[int, list[list[float]]]]:
        return list(_pass(network, dict(part), skip, shared))

    for index in order:
        more = sum(len(wanted) for wanted in trees[index].wanted)
        full = len(trees[index].tokens) * (len(batch) + 1) > tokens
        if batch and (full or (asked + more) * network.config.vocab_size > LOGITS):
            yield from chain.from_iterable(fit.each(batch, read))
            batch, asked = [], 0
        batch.append((index, trees[index]))
        asked += more
    yield from chain.from_iterable(fit.each(batch, read))


def _pass(
    network: Network, trees: dict[int, Tree], skip: int, shared: list[KeysValues] | None
) -> Iterator[tuple[int, list[list[float]]]]:
    device, longest = network.device, max(1, max(len(one.tokens) for one in trees.values()))
    ids = torch.zeros(len(trees), longest, dtype=torch.long)
    queries = torch.zeros(len(trees), longest, dtype=torch.long)
    parts = torch.zeros(len(trees), longest, dtype=torch.long)
    for row, one in enumerate(trees.values()):
        ids[row, : len(one.tokens)] = torch.tensor(one.tokens)
        queries[row, : len(one.tokens)] = torch.tensor(one.depths)
        parts[row, : len(one.tokens)] = torch.tensor(one.parts)
    keys = torch.cat([torch.arange(skip).expand(len(trees), -1), queries], 1).to(device)
    sees = torch.stack([_ancestors(one.parents, longest) for one in trees.values()]).to(device)
    allowed = torch.cat([sees.new_ones(len(trees), longest, skip), sees], 2)
    view = View(allowed, queries.to(device), keys, kernel=network.kernel)
    places = {
        place: k
        for k, place in enumerate(
            dict.fromkeys((row, node) for row, one in enumerate(trees.values()) for w in one.wanted for node, _ in w)
        )
    }
    where = Where(*(torch.tensor(side, dtype=torch.long, device=device) for side in _columns(list(places))))
    logits = network.logits(ids.to(device), queries.to(device), TextCache(shared), view, where, parts.to(device))
    asked = [
        (places[row, node], token) for row, one in enumerate(trees.values()) for w in one.wanted for node, token in w
    ]
    values = iter(_gather(logits, asked))
    for index, one in trees.items():
        yield index, [[next(values) for _ in wanted] for wanted in one.wanted]


def _columns(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def _ancestors(parents: list[int], size: int) -> Bool[Tensor, "t t"]:
    """Row i is true at node i and at its ancestors; a padding token attends to itself."""
    sees = np.eye(size, dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return torch.from_numpy(sees)


def _gather(logits: Float[Tensor, "n v"], asked: list[tuple[int, int]]) -> list[float]:
    rows, tokens = (torch.tensor(side, dtype=torch.long, device=logits.device) for side in _columns(asked))
    return (logits[rows, tokens].float() - logits.float().logsumexp(-1)[rows]).tolist()


def scored_answers(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]
) -> list[list[Scored]]:
    """The sequences to score: each text as the whole assistant turn of its chat, without the end of turn."""
    asked = [(one, text) for one, texts in zip(chats, continuations, strict=True) for text in texts]
    answered = [[*one, Message(role="assistant", content=text)] for one, text in asked]
    found = (Scored(ids[: end - 1], start) for ids, start, end in many_answer_ids(tokenizer, answered))
    return [[next(found) for _ in texts] for texts in continuations]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[list[int]]:
    """The same as `render_ids` of each chat, but tokenised together on all cores."""
    if not chats:
        return []
    texts = [render_text(tokenizer, one) for one in chats]
    everything = cast(
        list[list[int]], tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    )
    first = render_ids(tokenizer, chats[0])
    opening = first[: len(first) - len(everything[0])]  # a beginning-of-sequence token that the template lacks
    return [ids if ids[: len(opening)] == opening else opening + ids for ids in everything]
