"""Work in batches that fit into memory: a batch that does not fit is halved and tried again.

Where several processes share a GPU, memory that is free now may not be free later. This is for batches whose size
changes the speed and not the result. For other work, `naming` turns the error into one line.
"""

import gc
import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from sublim.core.errors import UserError, chain
from sublim.core.hardware import gpu
from sublim.memory.errors import first_line, out_of_memory

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITS = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Seconds between attempts at work that cannot be made smaller, while other processes hold GPU memory."""
PAUSE = 0.5
"""Seconds before a halved batch is tried while other processes use the GPU: they may need memory only briefly."""
SHARED = 2**30
"""If other processes hold this many bytes, waiting may help. CUDA itself keeps half a GiB for each process."""
GROWTH = 32
"""Batches in a row that must fit before the size is doubled again. Doubled after every failure."""
ERRORS = (RuntimeError, MemoryError)
"""What allocators raise; those of torch and CUDA are RuntimeErrors."""


class MemoryFit:
    """How many items are processed at a time: as many as requested until memory runs out, then fewer."""

    def __init__(self, unit: str, advice: str, alone: str | None = None) -> None:
        """`unit`: the items, in the plural. `advice`: what to change if even one does not fit. `alone`: how the message
        says when that happened, such as "in loading a model".
        """
        self.unit, self.advice, self.alone = unit, advice, alone or f"with 1 of the {unit} at a time"
        self.most: int | None = None
        """The largest number at a time; None as long as memory has not run out."""
        self._full, self._waited, self._good, self._growth = 0, 0, 0, GROWTH

    @property
    def share(self) -> float:
        """The present size as a share of the first size that did not fit; 1 if all fitted."""
        return 1.0 if self.most is None else self.most / self._full

    @contextmanager
    def trying(self, size: int) -> Generator[None]:
        """An attempt with `size` items. If memory runs out, the block ends and `most` is half of `size`.

        The caller must then drop its own references to tensors. Raises UserError if a single item does not fit and no
        other process holds GPU memory, or none is freed after the waits.
        """
        try:
            yield
        except ERRORS as error:
            if not out_of_memory(error):
                raise
            self._reduce(size, error)
        else:
            self._waited, self._good = 0, self._good + 1
            if self.most is not None and self._good >= self._growth:
                self.most, self._good = (2 * self.most if 2 * self.most < self._full else None), 0
            return
        release()

    def within(self, size: int) -> int:
        """`size`, or the number that fits if that is smaller."""
        return size if self.most is None else min(size, self.most)

    def each(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result], size: int | None = None
    ) -> Iterator[Result]:
        """Yields the results of `work` on the items in order, `size` items a call (None for all) or as many as fit."""
        at = 0
        while at < len(items):
            part = items[at : at + self.within(size or len(items))]
            made = list[Result]()
            with self.trying(len(part)):
                made.append(work(part))
            at += len(part) * len(made)
            yield from made

    def whole(self, size: int, work: Callable[[int], Result]) -> Result:
        """Returns the result of `work(size)`; if it does not fit, begins again from the start with fewer."""
        made = list[Result]()
        while not made:
            tried = self.within(size)
            with self.trying(tried):
                made.append(work(tried))
        return made[0]

    def _reduce(self, size: int, error: BaseException) -> None:
        """Halves the size. If it is 1 already, waits for memory of other processes, each time for longer."""
        others, self._good, self._growth = held_by_others(), 0, 2 * self._growth
        if size > 1:
            self._full = max(self._full, size)
            self.most, seconds = size // 2, PAUSE if others >= SHARED else 0.0
            told = f"with {size} {self.unit} at a time: going on with {self.most}; the result stays the same"
        else:
            # The memory of others may have been freed since the failure, so on a GPU the first wait is always worth it.
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
    """Returns the result of `work`, which cannot be made smaller: tries again while other processes hold GPU memory."""
    return MemoryFit("", advice, alone=when).whole(1, lambda _: work())


@contextmanager
def naming(when: str, advice: str) -> Generator[None]:
    """Raises UserError with `advice` if memory runs out in work that cannot be halved without changing the result."""
    try:
        yield
    except ERRORS as error:
        if not out_of_memory(error):
            raise
        raise UserError(one_line(when, advice)) from error


def one_line(when: str, advice: str) -> str:
    """One line that says when memory ran out, what other processes hold of the GPU, and what to do."""
    others, device = held_by_others(), "the GPU's" if torch.cuda.is_available() else "the machine's"
    shared = f"end what else uses the card ({others / 2**30:.1f} GiB), or " if others >= SHARED else ""
    return f"{device} memory ran out {when}: {shared}{advice}"


def held_by_others() -> int:
    """Roughly how many bytes of the GPU other processes hold; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # the GPU is too full for the CUDA context of this process
        return card.memory if (card := gpu()) else 0
    return max(0, total - free - torch.cuda.memory_reserved())


def release() -> None:
    """Returns unused memory to the device."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _empty_frames(error: BaseException) -> None:
    """Clears the stack frames of an error: their variables would keep tensors in memory."""
    for each in chain(error):
        traceback.clear_frames(each.__traceback__)
