"""Work in batches that fit into memory: a batch that does not fit is halved and tried again.

Free memory at one moment is no promise where several processes share a card. This is for batches whose size changes
the speed and not the result; what else runs out of memory is told in one line by `naming`.
"""

import gc
import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.memory.errors import first_line, out_of_memory

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITS = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Seconds between tries of what cannot be made smaller, while other processes hold memory of the card."""
PAUSE = 0.5
"""Seconds before a halved batch is tried beside other processes: what they need for a moment comes free again."""
SHARED = 2**30
"""Bytes of a card in other hands from which on waiting may help; CUDA itself keeps half a GiB for each process."""
GROWTH = 32
"""Batches in a row that must fit before twice as much is tried again; twice as many after every failure."""
ERRORS = (RuntimeError, MemoryError)
"""What allocators raise; torch's and CUDA's errors are RuntimeErrors."""


class Attempt:
    """How a try went."""

    failed = False


class Fit:
    """How many of something are done at a time: as many as are asked for until memory runs out, then fewer."""

    def __init__(self, unit: str, advice: str, alone: str | None = None) -> None:
        """`unit`: what is counted, in the plural. `advice`: what to change where even one does not fit. `alone`: how
        that is told, as in "in loading a model".
        """
        self.unit, self.advice, self.alone = unit, advice, alone or f"with 1 of the {unit} at a time"
        self.most: int | None = None
        """At most so many at a time; None while memory has not run out."""
        self._full, self._waited, self._good, self._growth = 0, 0, 0, GROWTH

    @property
    def share(self) -> float:
        """What is left of the size that was first too much, from 1 down."""
        return 1.0 if self.most is None else self.most / self._full

    @contextmanager
    def trying(self, size: int) -> Generator[Attempt]:
        """A try with `size` at a time. Where memory ran out, the block ends, `most` is half of it and `failed` is true.

        Whoever calls must drop its own names for tensors: they keep them in memory. Raises UserError where one does not
        fit and no other process holds memory of the card, or holds it on.
        """
        attempt = Attempt()
        try:
            yield attempt
        except ERRORS as error:
            if not out_of_memory(error):
                raise
            attempt.failed = True
            self._reduce(size, error)
            _empty_frames(error)
        if attempt.failed:
            release()
            return
        self._waited, self._good = 0, self._good + 1
        if self.most is not None and self._good >= self._growth:
            self.most, self._good = (2 * self.most if 2 * self.most < self._full else None), 0

    def within(self, size: int) -> int:
        """`size`, or what fits."""
        return size if self.most is None else min(size, self.most)

    def each(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result], size: int | None = None
    ) -> Iterator[Result]:
        """What `work` makes of the items, in their order, `size` to a call (nothing: all) or as many as fit."""
        at = 0
        while at < len(items):
            part = items[at : at + self.within(size or len(items))]
            made = list[Result]()
            with self.trying(len(part)):
                made.append(work(part))
            at += len(part) * len(made)
            yield from made

    def whole(self, size: int, work: Callable[[int], Result]) -> Result:
        """What `work` makes with `size` at a time; begun again from the start with fewer where they do not fit."""
        made = list[Result]()
        while not made:
            tried = self.within(size)
            with self.trying(tried):
                made.append(work(tried))
        return made[0]

    def _reduce(self, size: int, error: BaseException) -> None:
        """Halves the size; where it is 1 already, waits for other processes' memory, each time for longer."""
        others, self._good, self._growth = held_by_others(), 0, 2 * self._growth
        if size > 1:
            self._full = max(self._full, size)
            self.most, seconds = size // 2, PAUSE if others >= SHARED else 0.0
            told = f"with {size} {self.unit} at a time: going on with {self.most}; the result stays the same"
        else:
            # What the others held may have come free since: on a card the first wait is worth it in any case.
            hopeless = others < SHARED and (self._waited > 0 or not torch.cuda.is_available())
            if hopeless or self._waited == len(WAITS):
                raise UserError(one_line(self.alone, self.advice)) from error
            seconds = WAITS[self._waited]
            self._waited += 1
            held = f"other processes hold {others / 2**30:.1f} GiB of the GPU"
            told = f"{self.alone}: {held}, trying again in {seconds:g} s"
        log.warning("memory ran out %s (%s)", told, first_line(error))
        _empty_frames(error)
        release()
        time.sleep(seconds)


def patiently(when: str, advice: str, work: Callable[[], Result]) -> Result:
    """What `work` makes. It cannot be made smaller, so it is tried again while other processes hold the card."""
    return Fit("", advice, alone=when).whole(1, lambda _: work())


@contextmanager
def naming(when: str, advice: str) -> Generator[None]:
    """Says in one line what to change where memory runs out in what cannot be halved without changing the result."""
    try:
        yield
    except ERRORS as error:
        if not out_of_memory(error):
            raise
        raise UserError(one_line(when, advice)) from error


def one_line(when: str, advice: str) -> str:
    """When memory ran out and what to do, with what other processes hold of the GPU."""
    others, device = held_by_others(), "the GPU's" if torch.cuda.is_available() else "the machine's"
    shared = f"end what else uses the card ({others / 2**30:.1f} GiB), or " if others >= SHARED else ""
    return f"{device} memory ran out {when}: {shared}{advice}"


def held_by_others() -> int:
    """Bytes of the GPU that other processes hold, about; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # the card is so full that it has no room for this process's context
        return card.memory if (card := gpu()) else 0
    return max(0, total - free - torch.cuda.memory_reserved())


def release() -> None:
    """Gives memory that nothing uses back to the device."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _empty_frames(error: BaseException | None) -> None:
    """Empties the frames that an error went through: what they name would stay in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
