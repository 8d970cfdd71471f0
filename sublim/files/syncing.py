"""Waiting until a file or a folder is on the disk, as far as its file system can say so."""

import contextlib
import errno
import os
from pathlib import Path

# CIFS before Linux 4.17 and many FUSE file systems know no fsync of a folder.
UNKNOWN = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY)
REFUSED = (errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)
"""What some say of a folder that is opened for reading, as every folder is."""


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk. What its file system does not know is left out; EIO rises."""
    folder = path.is_dir()
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in UNKNOWN and not (folder and error.errno in REFUSED):
                raise
