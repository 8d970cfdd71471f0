"""Errors that speak to the person who runs an experiment."""

import errno
import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

LAST_BYTES = 64 * 1024  # a disk with less than this left is full, whatever a library called the error
FULL = (errno.ENOSPC, errno.EDQUOT)
_LOST = "the disk or the share was lost or fails: see that it is there and whole, then run again"
FAULTS = {
    errno.EACCES: "you lack the right to it: ask its owner for it, or take a folder of your own",
    errno.EPERM: "you lack the right to it: ask its owner for it, or take a folder of your own",
    errno.EROFS: "it can only be read: take a folder that you can write in",
    errno.EIO: _LOST,
    errno.ESTALE: _LOST,
    errno.ENOTCONN: _LOST,
    errno.ENODEV: _LOST,
    errno.ENXIO: _LOST,
    errno.EHOSTDOWN: _LOST,
    errno.ENAMETOOLONG: "the path is too long for this file system: take a folder with a shorter one",
    errno.EFBIG: "this file system takes no files of that size: take a folder on another",
    errno.EXDEV: "a part of the folder lies on another disk: move or link the folder as a whole",
    errno.ELOOP: "a link leads back to itself: remove it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: end what opens them",
    errno.ETXTBSY: "another program is writing or running that file: run again when it has ended",
    errno.ENOTSUP: "this file system cannot do it: take a folder on another",
    errno.ENOSYS: "this file system cannot do it: take a folder on another",
    errno.ENOLCK: "this file system has no locks: take a folder on another",
}
"""What to do about an error of a file system, by its number."""


class UserError(Exception):
    """A mistake in a config, a file or the data: one line that says what to do. The command exits with 2."""


class NotEnoughRows(UserError):
    """The filter left fewer rows than the student needs."""


class StoreUnreachable(UserError):
    """The store does not answer now: nothing is known about what it holds."""


class StoreRefused(StoreUnreachable):
    """The store answers, and will not do it until somebody changes something: another try is no use."""


def no_space(error: BaseException | None, root: Path) -> bool:
    """Whether an error came of a full disk. Libraries wrap the system's error, or give its words alone."""
    if any(_number(each) in FULL or "No space left on device" in str(each) for each in chain(error)):
        return True
    try:
        room = shutil.disk_usage(root)
    except OSError:
        return False
    return room.total > 0 and room.free < LAST_BYTES  # some FUSE file systems say that they have no bytes at all


def file_fault(error: BaseException, root: Path | None = None) -> str | None:
    """One line for what a file system refused; None for any other error.

    `root`: the folder that was being written, named where the error names no path.
    """
    for each in _causes(error):
        if isinstance(each, FileNotFoundError) and not each.filename and _working_folder_is_gone():
            return "the working folder was removed: change to one that is there, and run again"
        if (number := _number(each)) in FAULTS:
            path = getattr(each, "filename", None) or root
            where = f"{os.fsdecode(path) if isinstance(path, bytes) else path}: " if path else ""
            return f"{where}{os.strerror(number)}: {FAULTS[number]}"
    return None


@contextmanager
def file_faults_told(root: Path) -> Generator[None]:
    """Raises UserError in place of what a full disk or a file system's refusal raises inside; all else as it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if no_space(error, root):
            raise UserError(f"no space is left for {root}: free some and run again") from error
        if line := file_fault(error, root):
            raise UserError(line) from error
        raise


def _working_folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from or while handling, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _number(error: BaseException) -> int:
    """The system's number of an error, 0 for one that has none; libraries in Rust give it in their text."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0
