"""Reading the residual stream on many texts, in batches of similar length and up to the last layer that is needed.

Texts with a common prefix (two answers to one prompt) are read together, and their prefix is read once.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sublim.inference.attention import View, causal
from sublim.inference.network import KeysValues, Network, TextCache, Where, padded
from sublim.inference.prefix_trees import Tree, batches, common_prefix_length, prefix_tree, tree_view
from sublim.inference.steered import PROMPT
from sublim.memory.fitting import MemoryFit
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


class StreamReader:
    """Reads the residual stream of one network at given places."""

    def __init__(self, network: Network, places: Sequence[Place], tokens: int) -> None:
        """`tokens`: number of tokens, including padding, in one forward pass."""
        check_layers(network.model, [place.layer for place in places])
        self.network, self.places, self.tokens = network, list(places), tokens
        self.fit = MemoryFit("texts", "take dtype bfloat16, shorter texts or a smaller model")
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
            trees = [prefix_tree([text.ids for text in group], skip) for group in groups]

            def read(part: Sequence[int]) -> list[tuple[int, list[Entries]]]:
                return list(self._batch(part, groups, trees, shared, skip))

            for batch in batches(trees, self.tokens):
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
        trees: list[Tree],
        shared: Shared,
        skip: int,
    ) -> Iterator[tuple[int, list[Entries]]]:
        device, held = self.network.device, [trees[index] for index in batch]
        ids = padded([tree.tokens for tree in held])
        if all(len(tree.paths) == 1 for tree in held):
            view = causal(len(batch), ids.shape[1], skip, self.network.kernel, device)
        else:
            view = tree_view(held, skip, self.network)
        positions = view.queries.expand(len(batch), -1)
        streams = self._streams(ids.to(device), positions, TextCache(shared.cache), view)
        # Indices into one long list: the tokens of the common prefix, then those of each row of the batch.
        sources, longest = list[int](), ids.shape[1]
        texts = [text for index in batch for text in groups[index]]
        paths = [(row, path) for row, tree in enumerate(held) for path in tree.paths]
        for text, (row, path) in zip(texts, paths, strict=True):
            for pick in text.picks:
                sources.extend(place if place < skip else skip + row * longest + path[place - skip] for place in pick)
        pooled = self._pooled(streams, shared, sources, [len(pick) for text in texts for pick in text.picks])
        counts = [len(text.picks) for text in texts]
        entries = map(Entries, pooled.values.split(counts), pooled.norms.split(counts))
        for index in batch:
            yield index, [next(entries) for _ in groups[index]]

    def _pooled(self, streams: list[Tensor], shared: Shared, sources: list[int], lengths: list[int]) -> Entries:
        """The means over picked tokens: `lengths` says how many of `sources` belong to each entry."""
        device = self.network.device
        source, count = torch.tensor(sources, device=device), torch.tensor(lengths)
        target = torch.arange(len(lengths)).repeat_interleave(count).to(device)
        count = count.float().to(device)
        values, norms = list[Tensor](), list[Tensor]()
        for number, stream in enumerate(streams):
            flat = stream.flatten(0, 1)
            picked = (torch.cat([shared.streams[number], flat]) if shared.streams else flat)[source].float()
            sums = picked.new_zeros(len(lengths), picked.shape[1]).index_add_(0, target, picked)
            norm = picked.new_zeros(len(lengths)).index_add_(0, target, picked.norm(dim=1))
            values.append(sums / count[:, None])
            norms.append(norm / count)
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
