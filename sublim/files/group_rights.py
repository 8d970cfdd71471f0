"""Permissions in a folder that a group of users shares, where one member's umask would lock out the others."""

import contextlib
import os
from pathlib import Path
from stat import S_IMODE, S_ISDIR, S_ISGID, S_IWGRP

FILE_RIGHTS, FOLDER_RIGHTS = 0o060, 0o070 | S_ISGID


def share_with_group(path: Path, folder: Path | None = None) -> None:
    """Gives the group the permissions on `path` that it has on `folder` (by default the folder of `path`).

    Does nothing where the group cannot write in `folder`, or where `path` belongs to another user or group.
    """
    shared, mine = (folder or path.parent).stat(), path.stat()
    if shared.st_mode & S_IWGRP and shared.st_gid == mine.st_gid and mine.st_uid == os.geteuid():
        rights = shared.st_mode & (FOLDER_RIGHTS if S_ISDIR(mine.st_mode) else FILE_RIGHTS)
        if rights & ~mine.st_mode:
            with contextlib.suppress(PermissionError):  # some network file systems allow no chmod
                path.chmod(S_IMODE(mine.st_mode) | rights)


def owner_of(path: Path) -> str:
    """The name of a file's owner, or the user number where the system knows no name for it."""
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"
