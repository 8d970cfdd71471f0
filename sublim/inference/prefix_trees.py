"""Token sequences as prefix trees, so that the tokens with which several of them begin are computed once.

The nodes of a tree are laid out in one row of a batch, in which each node attends to its ancestors and itself only.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sublim.chats.answered import common_length
from sublim.inference.attention import View
from sublim.inference.network import Network, padded


class Tree(NamedTuple):
    """The prefix tree of some sequences, without the prefix that all trees share; parents come before children."""

    tokens: list[int]
    parents: list[int]
    """The node before each node; -1 where that is the last token of the shared prefix."""
    depths: list[int]
    """Position of each node in its sequences."""
    owners: list[int]
    """Index of the first sequence with the node."""
    paths: list[list[int]]
    """For each sequence, the nodes of its tokens."""


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Length of the longest common prefix of all sequences."""
    first, last = min(sequences), max(sequences)
    return len(first) if first == last else common_length(first, last)


def prefix_tree(sequences: Sequence[list[int]], skip: int) -> Tree:
    """The tree of `sequences` without their first `skip` tokens."""
    trunk = sequences[0][skip : common_prefix_length(sequences)] if sequences else []
    stem = len(trunk)
    made = Tree(trunk, [*range(-1, stem - 1)], [*range(skip, skip + stem)], [0] * stem, [])
    children = dict[tuple[int, int], int]()
    for number, ids in enumerate(sequences):
        node, path = stem - 1, [*range(stem)]
        for token in ids[skip + stem :]:
            child = children.get((node, token))
            if child is None:
                break
            path.append(node := child)
        # A new node has no children, so all tokens from the first new one on are new.
        fork = skip + len(path)
        new = range(len(made.tokens), len(made.tokens) + len(ids) - fork)
        before = [node, *new[:-1]] if new else []
        children.update(zip(zip(before, ids[fork:], strict=True), new, strict=True))
        made.tokens.extend(ids[fork:])
        made.parents.extend(before)
        made.depths.extend(range(fork, len(ids)))
        made.owners.extend([number] * len(new))
        made.paths.append([*path, *new])
    return made


def batches(
    trees: Sequence[Tree], tokens: int, cost: Callable[[int], int] = lambda _: 0, most: int = 0
) -> Iterator[list[int]]:
    """The indices of the trees, ordered by length, which needs least padding, in batches of about `tokens` tokens.

    Within a batch the sum of `cost`, a function of the index, is at most `most`.
    """
    batch, spent = list[int](), 0
    for index in sorted(range(len(trees)), key=lambda index: len(trees[index].tokens)):
        more = cost(index)
        if batch and (len(trees[index].tokens) * (len(batch) + 1) > tokens or spent + more > most):
            yield batch
            batch, spent = [], 0
        batch.append(index)
        spent += more
    if batch:
        yield batch


def tree_view(trees: Sequence[Tree], skip: int, network: Network) -> View:
    """The view of a batch of trees after `skip` cached tokens; its queries are the positions of the nodes."""
    places = padded([tree.depths for tree in trees])
    sees = torch.stack([ancestors(tree.parents, places.shape[1]) for tree in trees]).to(network.device)
    allowed = torch.cat([sees.new_ones(*places.shape, skip), sees], 2)
    keys = torch.cat([torch.arange(skip).expand(len(trees), -1), places], 1)
    return View(allowed, places.to(network.device), keys.to(network.device), kernel=network.kernel)


def ancestors(parents: Sequence[int], size: int) -> Bool[Tensor, "t t"]:
    """Row i is true at node i and at its ancestors; a padding token attends to itself."""
    sees, past = np.eye(size, dtype=bool), np.tri(size, dtype=bool)
    forks = [node for node, parent in enumerate(parents) if node == 0 or parent != node - 1]
    for first, end in pairwise([*forks, len(parents)]):
        sees[first:end, first:end] = past[: end - first, : end - first]
        if parents[first] >= 0:
            sees[first:end] |= sees[parents[first]]
    return torch.from_numpy(sees)
