"""The hf backend: samples and scores with a transformers model in this process.

Cost: a model of 135M parameters needs about 50 billion operations for a prompt and a list of ten numbers, so two CPU
cores write a few lists a second.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch

from sublim.chats.chat import Chat
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.core.progress import progress
from sublim.inference.batch_sizes import BatchSizes
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.inference.constrained import Plan, answer_plan
from sublim.inference.decode import Batch, Request, Writer, Written, read_one_behind
from sublim.inference.network import Network
from sublim.inference.prefix_trees import common_prefix_length
from sublim.inference.sampler import Completion
from sublim.inference.scoring import prompt_ids, score, scored_answers
from sublim.inference.slots import DecodeSlots
from sublim.inference.vocabulary import Vocabulary
from sublim.memory.fitting import ERRORS, MemoryFit, naming
from sublim.models.opening import LoadedModel, open_model, stop_ids
from sublim.residual.edits import Steering
from sublim.residual.vectors import LoadedEdit, load_edits, read_vectors

T = TypeVar("T")
log = logging.getLogger(__name__)

FIELD = "in sampling", "lower the sampling backend's batch_size"
"""For the error where memory runs out outside of the batches that are halved."""
ADVICE = "take dtype bfloat16 or a smaller model, or lower max_tokens"
PORTION = 2048
"""Number of constrained answers whose prompts are tokenised together, while the GPU decodes those before them."""


@contextmanager
def open_hf(backend: HfBackend, base: Path, weights: Path | None) -> Generator["HfSampler"]:
    """A sampler on a model loaded for the time of the block; `backend` must be resolved."""
    assert backend.dtype != "auto"
    if backend.attention == "flash_attention_2" and (gpu() is None or backend.dtype == "float32"):
        raise UserError("flash_attention_2 needs a GPU and bfloat16 weights: set attention to sdpa")
    if gpu() is not None and backend.attention == "sdpa" and find_spec("flash_attn") is None:
        log.info("attention is sdpa: flash-attn is not installed (see `sublim doctor`)")
    with open_model(base, weights, dtype=backend.dtype, attention=backend.attention) as loaded:
        yield HfSampler(loaded, backend, base)


class HfSampler:
    """A Sampler (see sublim.inference.sampler) on one loaded model."""

    def __init__(self, loaded: LoadedModel, backend: HfBackend, base: Path) -> None:
        assert backend.attention != "auto"
        self.tokenizer, self.backend, self.base = loaded.tokenizer, backend, base
        self.network = Network(loaded.model, backend.attention)
        self.fit, self.scoring = MemoryFit("answers", ADVICE), MemoryFit("questions", ADVICE)
        self.sizes = BatchSizes(self.network, backend.batch_size, self.fit)
        self.stop = stop_ids(loaded.tokenizer, getattr(loaded.model.generation_config, "eos_token_id", None))
        self.vocabulary = Vocabulary(loaded.tokenizer)
        self._slots: DecodeSlots | None = None

    def edits(self, steering: Steering, vectors: Path) -> list[LoadedEdit]:
        """See `Steerable.edits`."""
        return load_edits(steering, read_vectors(vectors), self.network.config, self.base)

    def steer(self, edits: Sequence[LoadedEdit]) -> None:
        """See `Steerable.steer`."""
        if self.network.steer(edits):
            self._slots = None

    def sample(
        self, chats: Sequence[Chat], params: SamplingParams, *, constraint: NumberFormat | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """See `Sampler.sample`."""
        made = answer_plan(self.tokenizer, constraint, params.max_tokens)
        answers: list[list[Completion | None]] = [[None] * params.n for _ in chats]
        with self.network.installed(), progress("sampling", len(chats) * params.n) as advance, naming(*FIELD):
            self.network.head.restrict(made.allowed if made else None)
            if made is None:
                writing = self._free(self._requests(chats, range(len(chats)), params, None), params, first)
            else:
                most = max(PORTION, self.backend.batch_size or 0) // params.n
                portions = (self._requests(chats, portion, params, made) for portion in even_ranges(len(chats), most))
                writing = read_one_behind(self._constrained(portions, params, made, first))
            for written in writing:
                answers[written.request.chat][written.request.answer] = self._completion(written, params, made)
                advance(1)
        return [[answer for answer in own if answer is not None] for own in answers]

    def logprobs(self, chats: Sequence[Chat], continuations: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """See `Sampler.logprobs`."""
        questions = scored_answers(self.tokenizer, chats, continuations)
        for scored in chain.from_iterable(questions):
            self._checked_length(scored.ids, 0)
        scores: list[list[list[float]]] = [[] for _ in chats]
        with self.network.installed(), progress("scoring", len(questions)) as advance, naming(*FIELD):
            self.network.head.restrict(None)
            for index, own in score(self.network, questions, self.sizes.tokens(), self.scoring):
                scores[index] = own
                advance(1)
        return scores

    def _requests(
        self, chats: Sequence[Chat], portion: range, params: SamplingParams, made: Plan | None
    ) -> list[Request]:
        begin, length = (list(made.steps[0].forced), made.length) if made else ([], params.max_tokens)
        prompts = prompt_ids(self.tokenizer, [chats[index] for index in portion])
        return [
            Request(index, answer, self._checked_length(ids, length) + begin)
            for index, ids in zip(portion, prompts, strict=True)
            for answer in range(params.n)
        ]

    def _free(self, requests: list[Request], params: SamplingParams, first: int) -> Iterator[Written]:
        unknown = self.vocabulary.unknown(self.network.config.vocab_size)
        writer = partial(Writer, self.network, params=params, shared=shared_opening(requests, 0), first=first)
        for group, length in groups_by_length(requests, params.max_tokens):
            left = {(request.chat, request.answer): request for request in group}
            while left:
                rows = self._rows(len(left), length, refill=True)
                write = partial(Writer.free, requests=[*left.values()], stop=self.stop, never=unknown)
                for written in self._tried(writer, write, rows, length):
                    del left[written.request.chat, written.request.answer]
                    yield written

    def _constrained(
        self, portions: Iterable[list[Request]], params: SamplingParams, made: Plan, first: int
    ) -> Iterator[Batch]:
        begun = len(made.steps[0].forced)
        for requests in portions:
            shared = shared_opening(requests, begun)
            writer = partial(Writer, self.network, params=params, shared=shared, first=first, begun=begun)
            for group, length in groups_by_length(requests, made.length):
                while group:
                    rows = self._rows(len(group), length, refill=False)
                    write = partial(Writer.constrained, requests=group, made=made)
                    for batch in self._tried(writer, write, rows, length):
                        group = group[len(batch.requests) :]
                        yield batch

    def _tried(
        self, writer: partial[Writer], write: Callable[[Writer], Iterator[T]], rows: int, length: int
    ) -> Iterator[T]:
        """What `write` gives before memory runs out. Then the slots are dropped, and `fit` allows fewer rows.

        No variable here holds the slots, because it would keep their memory.
        """
        with self.fit.trying(rows):
            try:
                yield from write(writer(slots=self._slots_for(rows, length), read=self.sizes.tokens()))
            except ERRORS:
                self._drop_slots()
                raise

    def _rows(self, requests: int, length: int, *, refill: bool) -> int:
        most = self.sizes.rows(length, held=self._slots.cache.bytes if self._slots else 0)
        # Batches of equal size, unless rows are refilled: then all rows stay busy until few answers are left.
        return min(most, requests) if refill else -(-requests // -(-requests // most))

    def _drop_slots(self) -> None:
        if self._slots is not None and self.sizes.gpu:
            torch.cuda.synchronize()  # its CUDA graphs may still be running
        self._slots = None

    def _slots_for(self, rows: int, length: int) -> DecodeSlots:
        """The slots of the last call if their size fits, so that no new graph is captured; otherwise new ones."""
        kept = self._slots
        if kept is None or kept.cache.rows != rows or not length <= kept.cache.length <= 1.25 * length:
            kept = None
            self._drop_slots()  # frees their memory before new slots are allocated
            self._slots = kept = DecodeSlots(self.network, rows, length, graphs=self.backend.cuda_graphs)
        return kept

    def _completion(self, written: Written, params: SamplingParams, made: Plan | None) -> Completion:
        if not math.isfinite(sum(written.logprobs)):
            raise UserError(
                "the model's log-probs are not finite, so it cannot be sampled: its training diverged (take an earlier "
                "checkpoint or a lower learning rate), or its files are damaged"
            )
        stopped = made is not None or written.tokens[-1] in self.stop
        scores = written.logprobs if params.logprobs else None
        return self.vocabulary.completion(written.tokens, scores, stopped=stopped, constrained=made is not None)

    def _checked_length(self, ids: list[int], more: int) -> list[int]:
        limit = getattr(self.network.config, "max_position_embeddings", None)
        if limit is not None and len(ids) + more > limit:
            raise UserError(
                f"a text of {len(ids)} tokens and {more} to generate exceed the model's limit of {limit}: "
                "shorten the prompt or lower max_tokens"
            )
        return ids


def shared_opening(requests: Sequence[Request], begun: int) -> list[int]:
    """The common prefix of all prompts, which is read once.

    It never includes the last token of a prompt, whose logits are needed, nor the `begun` tokens before its end.
    """
    prompts = list({request.chat: request.prompt for request in requests}.values())
    if len(prompts) < 2:
        return []
    most = min(map(len, prompts)) - begun - 1
    return prompts[0][: max(min(common_prefix_length(prompts), most), 0)]


def even_ranges(n: int, most: int) -> Iterator[range]:
    """Splits 0 to n - 1 into the fewest ranges of at most `most` numbers, whose lengths differ by at most one."""
    parts = -(-n // max(most, 1))
    return (range(n * part // parts, n * (part + 1) // parts) for part in range(parts))


def groups_by_length(requests: Sequence[Request], longest: int) -> Iterator[tuple[list[Request], int]]:
    """Groups of requests of similar length, longest first, each with a cache length (a multiple of 32) that fits
    all."""
    group, most = list[Request](), 0
    for request in sorted(requests, key=lambda request: len(request.prompt), reverse=True):
        need = len(request.prompt) + longest
        if group and need < 0.75 * most:
            yield group, -(-most // 32) * 32
            group = []
        if not group:
            most = need
        group.append(request)
    if group:
        yield group, -(-most // 32) * 32
