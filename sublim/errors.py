"""Errors that speak to the person who runs an experiment."""

import errno
import shutil
from pathlib import Path

LAST_BYTES = 64 * 1024  # a disk with less than this left is full, whatever a library called the error


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
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(root).free < LAST_BYTES
