"""Errors that tell the person who runs an experiment what to do."""

import errno
import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

LAST_BYTES = 64 * 1024
"""A disk with less free space than this is taken to be full, whatever error a library raised."""
FULL = (errno.ENOSPC, errno.EDQUOT)
_LOST = "the disk or network share fails or was disconnected: check it, then run again"
_DENIED = "you lack the permission: ask its owner for it, or take a folder of your own"
FAULTS = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "it is read-only: take a folder that you can write in",
    errno.EIO: _LOST,
    errno.ESTALE: _LOST,
    errno.ENOTCONN: _LOST,
    errno.ENODEV: _LOST,
    errno.ENXIO: _LOST,
    errno.EHOSTDOWN: _LOST,
    errno.ENAMETOOLONG: "the path is too long for this file system: take a folder with a shorter path",
    errno.EFBIG: "this file system allows no files of that size: take a folder on another",
    errno.EXDEV: "a part of the folder is on another disk: move or link the folder as a whole",
    errno.ELOOP: "a link leads back to itself: remove it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: end the programs that opened them",
    errno.ETXTBSY: "another program is writing or executing that file: run again when it has ended",
    errno.ENOTSUP: "this file system cannot do it: take a folder on another",
    errno.ENOSYS: "this file system cannot do it: take a folder on another",
    errno.ENOLCK: "this file system has no locks: take a folder on another",
}
"""What to do about an error of a file system, by its errno."""


class UserError(Exception):
    """A mistake in a config, a file or the data, told in one line that says what to do. The command exits with 2."""


class NotEnoughRows(UserError):
    """The filter kept fewer rows than the student needs."""


class StoreUnreachable(UserError):
    """The store does not answer, so that nothing is known about what it holds. Trying again may help."""


class StoreRefused(StoreUnreachable):
    """The store refuses. Trying again does not help until somebody changes something."""


def no_space(error: BaseException | None, root: Path) -> bool:
    """Whether an error was caused by a full disk under `root`.

    Libraries wrap the system's error or only repeat its text, so causes, texts and the free space are all checked.
    """
    if any(_number(each) in FULL or "No space left on device" in str(each) for each in chain(error)):
        return True
    try:
        room = shutil.disk_usage(root)
    except OSError:
        return False
    return room.total > 0 and room.free < LAST_BYTES  # some FUSE file systems report a size of zero


def file_fault(error: BaseException, root: Path | None = None) -> str | None:
    """Describes in one line what a file system refused; None for any other error.

    `root` is the folder that was being written; it is named where the error names no path.
    """
    for each in _causes(error):
        if isinstance(each, FileNotFoundError) and not each.filename and _working_folder_is_gone():
            return "the working folder was removed: change to one that exists, and run again"
        if (number := _number(each)) in FAULTS:
            path = getattr(each, "filename", None) or root
            where = f"{os.fsdecode(path) if isinstance(path, bytes) else path}: " if path else ""
            return f"{where}{os.strerror(number)}: {FAULTS[number]}"
    return None


@contextmanager
def file_faults_told(root: Path) -> Generator[None]:
    """Raises UserError in place of the errors of a full disk or of a file system. Other errors pass unchanged."""
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
    """Yields an error, then the error that it was raised from or while handling, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _number(error: BaseException) -> int:
    """The errno of an error, or 0. Libraries written in Rust give it in the text."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0
