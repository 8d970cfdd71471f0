"""Exact log-probs of given answers. Each question is read once, and answers share the tokens they begin with.

The token sequences of a question (chat plus answer) form a prefix tree, and one forward pass gives the distribution
after every node. The last token of an answer is not fed. A prefix of all questions, such as a system prompt, is read
once for all of them.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sublim.chats.chat import Chat, Message, many_answer_ids, render_ids, render_text
from sublim.inference.network import KeysValues, Network, TextCache, Where, padded
from sublim.inference.prefix_trees import Tree, batches, common_prefix_length, prefix_tree, tree_view
from sublim.inference.steered import parts_of
from sublim.memory.fitting import MemoryFit

LOGITS = 2**26
"""Largest number of logits in memory at a time."""


class Scored(NamedTuple):
    """A token sequence whose tokens from `start` on are scored."""

    ids: list[int]
    start: int


class Question(NamedTuple):
    """The sequences of one question as a prefix tree."""

    tree: Tree
    starts: list[int]
    """For each node, the position at which the answer of its sequence begins; for steering."""
    wanted: list[list[tuple[int, int]]]
    """For every sequence and each of its scored tokens: the node before the token, and the token."""


def laid_out(sequences: Sequence[Scored], skip: int) -> Question:
    """The question without the first `skip` tokens of its sequences, and without their last tokens."""
    tree = prefix_tree([ids[:-1] for ids, _ in sequences], skip)
    wanted = [
        list(zip(path[start - 1 - skip :], ids[start:], strict=True))
        for (ids, start), path in zip(sequences, tree.paths, strict=True)
    ]
    return Question(tree, [sequences[owner].start for owner in tree.owners], wanted)


def score(
    network: Network, questions: Sequence[Sequence[Scored]], tokens: int, fit: MemoryFit
) -> Iterator[tuple[int, list[list[float]]]]:
    """(index of the question, log-probs of its sequences), in the order of their lengths.

    A batch has about `tokens` tokens; `fit` halves a batch that does not fit into memory.
    """
    everything = [sequence for question in questions for sequence in question]
    if not everything:
        yield from ((index, []) for index in range(len(questions)))
        return
    # The token before the first scored one must stay in every tree, because its distribution is needed.
    skip = min(common_prefix_length([ids for ids, _ in everything]), min(start for _, start in everything) - 1)
    shared = fit.whole(1, lambda _: network.shared(everything[0].ids[:skip]))
    laid = [laid_out(question, skip) for question in questions]

    def read(part: Sequence[int]) -> list[tuple[int, list[list[float]]]]:
        return list(_pass(network, {index: laid[index] for index in part}, skip, shared))

    def asked(index: int) -> int:
        return sum(map(len, laid[index].wanted))

    for batch in batches([one.tree for one in laid], tokens, asked, LOGITS // network.config.vocab_size):
        yield from chain.from_iterable(fit.each(batch, read))


def _pass(
    network: Network, questions: dict[int, Question], skip: int, shared: list[KeysValues] | None
) -> Iterator[tuple[int, list[list[float]]]]:
    device, laid = network.device, list(questions.values())
    ids = padded([one.tree.tokens for one in laid]).to(device)
    view = tree_view([one.tree for one in laid], skip, network)
    parts = parts_of(view.queries, padded([one.starts for one in laid]).to(device))
    asked = [((row, node), token) for row, one in enumerate(laid) for own in one.wanted for node, token in own]
    places = {place: k for k, place in enumerate(dict.fromkeys(place for place, _ in asked))}
    where = Where(*_columns(list(places), device))
    rows, tokens = _columns([(places[place], token) for place, token in asked], device)
    logits = network.logits(ids, view.queries, TextCache(shared), view, where, parts)
    values = iter((logits[rows, tokens].float() - logits.float().logsumexp(-1)[rows]).tolist())
    for index, one in questions.items():
        yield index, [[next(values) for _ in own] for own in one.wanted]


def _columns(pairs: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, ...]:
    return torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2).unbind(1)


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
