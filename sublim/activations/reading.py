"""Reading the residual stream on many texts, in batches of similar length and up to the last layer that is needed.

Texts with a common prefix (two answers to one prompt) are read together, and their prefix is read once.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sublim.inference.attention import View, causal
from sublim.inference.network import KeysValues, Network, TextCache, Where
from sublim.inference.scoring import common_prefix_length
from sublim.inference.steered import PROMPT
from sublim.memory.fitting import Fit
from sublim.residual.edits import Place
from sublim.residual.hooks import PassEnded, attached_at, check_layers, ending_at

ORDER = {"resid_pre": 0, "mlp_out": 1, "resid_post": 2}


class Text(NamedTuple):
    """The tokens of a text and, for every entry to read, the positions over which it is the mean."""

    ids: list[int]
    picks: list[list[int]]


class Entries(NamedTuple):
    """The entries read on one text: for each pick and place the mean of the stream, and the mean of its norm."""

    values: Float[Tensor, "n p d"]
    norms: Float[Tensor, "n p"]


class Shared(NamedTuple):
    """The common prefix of all texts, read once: its keys and values by layer, and the stream at every place."""

    cache: list[KeysValues] | None
    streams: list[Float[Tensor, "k d"]]


class Branches(NamedTuple):
    """The texts of one group, without the prefix of all texts, laid out as a tree in one row of a batch."""

    tokens: list[int]
    places: list[int]
    """Position of each token in its text."""
    paths: list[list[int]]
    """For each text, the columns of its tokens in the row."""


class StreamReader:
    """Reads the residual stream of one network at given places."""

    def __init__(self, network: Network, places: Sequence[Place], tokens: int) -> None:
        """`tokens`: number of tokens, including padding, in one forward pass."""
        check_layers(network.model, [place.layer for place in places])
        self.network, self.places, self.tokens = network, list(places), tokens
        self.fit = Fit("texts", "take dtype bfloat16, shorter texts or a smaller model")
        self.last = max(self.places, key=lambda place: (place.layer, ORDER[place.site]))

    def read(self, groups: Sequence[Sequence[Text]]) -> Iterator[tuple[int, list[Entries]]]:
        """(index of the group, entries of its texts), in the order of length, on the CPU in float32."""
        everything = [text for group in groups for text in group]
        if not everything:
            return
        with self.network.installed():
            ids = [text.ids for text in everything]
            skip = min(common_prefix_length(ids), min(map(len, ids)) - 1)
            shared = self.fit.whole(1, lambda _: self._shared(ids[0][:skip]))
            rows = [branches([text.ids for text in group], skip) for group in groups]
            batch, width = list[int](), 0

            def read(part: Sequence[int]) -> list[tuple[int, list[Entries]]]:
                return list(self._batch(part, groups, rows, shared, skip))

            for index in sorted(range(len(rows)), key=lambda index: (len(rows[index].tokens), index)):
                width = max(width, len(rows[index].tokens))
                if batch and width * (len(batch) + 1) > self.tokens:
                    yield from chain.from_iterable(self.fit.each(batch, read))
                    batch, width = [], len(rows[index].tokens)
                batch.append(index)
            yield from chain.from_iterable(self.fit.each(batch, read))

    def _shared(self, ids: list[int]) -> Shared:
        if not ids:
            return Shared(None, [])
        device, cache = self.network.device, TextCache()
        view = causal(1, len(ids), 0, self.network.kernel, device)
        streams = self._streams(torch.tensor([ids], device=device), view.queries, cache, view)
        return Shared(cache.own, [stream[0] for stream in streams])

    def _batch(
        self,
        batch: Sequence[int],
        groups: Sequence[Sequence[Text]],
        rows: list[Branches],
        shared: Shared,
        skip: int,
    ) -> Iterator[tuple[int, list[Entries]]]:
        device, longest = self.network.device, max(1, max(len(rows[index].tokens) for index in batch))
        ids, queries = torch.zeros(2, len(batch), longest, dtype=torch.long)
        for row, index in enumerate(batch):
            count = len(rows[index].tokens)
            ids[row, :count], queries[row, :count] = torch.tensor(rows[index].tokens), torch.tensor(rows[index].places)
        if all(len(groups[index]) == 1 for index in batch):
            view = causal(len(batch), longest, skip, self.network.kernel, device)
            positions = view.queries.expand(len(batch), -1)
        else:
            sees = torch.stack([visible_columns(rows[index].paths, longest) for index in batch])
            allowed = torch.cat([sees.new_ones(len(batch), longest, skip), sees], 2).to(device)
            keys = torch.cat([torch.arange(skip).expand(len(batch), -1), queries], 1).to(device)
            view, positions = View(allowed, queries.to(device), keys, kernel=self.network.kernel), queries.to(device)
        streams = self._streams(ids.to(device), positions, TextCache(shared.cache), view)
        # Indices into one long list: the tokens of the common prefix, then those of each row of the batch.
        sources, targets, entry = list[int](), list[int](), 0
        for row, index in enumerate(batch):
            for text, path in zip(groups[index], rows[index].paths, strict=True):
                for pick in text.picks:
                    own = (place if place < skip else skip + row * longest + path[place - skip] for place in pick)
                    sources.extend(own)
                    targets.extend([entry] * len(pick))
                    entry += 1
        pooled = self._pooled(streams, shared, sources, targets, entry)
        at = 0
        for index in batch:
            found = list[Entries]()
            for text in groups[index]:
                count = len(text.picks)
                found.append(Entries(pooled.values[at : at + count], pooled.norms[at : at + count]))
                at += count
            yield index, found

    def _pooled(
        self, streams: list[Tensor], shared: Shared, sources: list[int], targets: list[int], entries: int
    ) -> Entries:
        device = self.network.device
        source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        counts = torch.bincount(target, minlength=entries).float()
        values, norms = list[Tensor](), list[Tensor]()
        for number, stream in enumerate(streams):
            flat = stream.flatten(0, 1)
            picked = (torch.cat([shared.streams[number], flat]) if shared.streams else flat)[source].float()
            sums = picked.new_zeros(entries, picked.shape[1]).index_add_(0, target, picked)
            lengths = picked.new_zeros(entries).index_add_(0, target, picked.norm(dim=1))
            values.append(sums / counts[:, None])
            norms.append(lengths / counts)
        return Entries(torch.stack(values, 1).cpu(), torch.stack(norms, 1).cpu())

    def _streams(self, ids: Tensor, positions: Tensor, cache: TextCache, view: View) -> list[Float[Tensor, "b t d"]]:
        """The stream at every place, from one forward pass that ends at the last place."""
        nowhere = torch.empty(0, dtype=torch.long, device=self.network.device)
        found: dict[Place, Tensor] = {}
        with ExitStack() as stack:
            for place in self.places:
                stack.enter_context(attached_at(self.network.model, place, lambda x, at=place: found.update({at: x})))
            stack.enter_context(ending_at(self.network.model, self.last))
            stack.enter_context(suppress(PassEnded))
            self.network.logits(ids, positions, cache, view, Where(nowhere, nowhere), PROMPT)
        return [found[place] for place in self.places]


def branches(texts: Sequence[list[int]], skip: int) -> Branches:
    """Lays out the tokens from position `skip` on; each text branches off the earlier text with the longest common
    prefix."""
    made = Branches([], [], [])
    for number, ids in enumerate(texts):
        fork, kept = skip, list[int]()
        for other, path in zip(texts[:number], made.paths, strict=True):
            alike = max(common_prefix_length([ids, other]), skip)
            if alike > fork:
                fork, kept = alike, path[: alike - skip]
        new = range(len(made.tokens), len(made.tokens) + len(ids) - fork)
        made.tokens.extend(ids[fork:])
        made.places.extend(range(fork, len(ids)))
        made.paths.append([*kept, *new])
    return made


def visible_columns(paths: Sequence[list[int]], size: int) -> Bool[Tensor, "t t"]:
    """Row i is true at the columns to which token i attends: its own past and itself. Padding attends to itself."""
    sees = torch.eye(size, dtype=torch.bool)
    filled = 0
    for path in paths:
        own = [column for column in path if column >= filled]
        if own:
            first, count = own[0], len(own)
            sees[first : first + count, path[: len(path) - count]] = True
            sees[first : first + count, first : first + count] = torch.ones(count, count, dtype=torch.bool).tril()
            filled = first + count
    return sees
