"""Progress of long loops: reported where the work is done, and shown by a listener."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Calls `listener(label, done, total)` for all progress inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress(label: str, total: int) -> Generator[Callable[[int], None]]:
    """Gives `advance(n)`, to be called when `n` of the `total` units of work are done."""
    listener = _listener.get()
    done = 0

    def advance(n: int = 1) -> None:
        nonlocal done
        done += n
        if listener is not None:
            listener(label, done, total)

    advance(0)
    yield advance
