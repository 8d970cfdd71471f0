"""Waiting until a file or a folder is on the disk (fsync), as far as its file system supports that."""

import contextlib
import errno
import os
from pathlib import Path

# CIFS before Linux 4.17 and many FUSE file systems have no fsync of a folder.
UNKNOWN = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY)
REFUSED = (errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)
"""What some file systems answer to the fsync of a folder, which can only be opened for reading."""


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk; does nothing where its file system has no fsync.

    Raises OSError for every other failure, such as EIO.
    """
    folder = path.is_dir()
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in UNKNOWN and not (folder and error.errno in REFUSED):
                raise
