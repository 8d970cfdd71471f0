"""Rights in a folder that a group shares: what one member's umask takes away would lock the others out."""

import contextlib
import os
import pwd
from pathlib import Path
from stat import S_IMODE, S_ISDIR, S_ISGID, S_IWGRP

FILE_RIGHTS, FOLDER_RIGHTS = 0o060, 0o070 | S_ISGID


def share_with_group(path: Path, folder: Path | None = None) -> None:
    """Gives the group that may write in `folder` (by default the one `path` is in) the same rights to `path`."""
    shared, mine = (folder or path.parent).stat(), path.stat()
    if shared.st_mode & S_IWGRP and shared.st_gid == mine.st_gid and mine.st_uid == os.geteuid():
        rights = shared.st_mode & (FOLDER_RIGHTS if S_ISDIR(mine.st_mode) else FILE_RIGHTS)
        if rights & ~mine.st_mode:
            with contextlib.suppress(PermissionError):  # file systems with rights of their own keep them
                path.chmod(S_IMODE(mine.st_mode) | rights)


def owner_of(path: Path) -> str:
    """The name of a file's owner, or the number where there is no name for it."""
    number = path.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
