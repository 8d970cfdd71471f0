"""Trying out what a store needs from its file system, once in each process and before anything is computed."""

import os
import shutil
from functools import cache
from pathlib import Path
from secrets import token_hex

from sublim.core.errors import UserError, file_faults_told
from sublim.files.group_rights import owner_of
from sublim.files.locks import no_locks, try_lock
from sublim.files.syncing import sync

LONGEST_NAME = 140
"""Length in bytes of the longest file name that a store makes; eCryptfs allows 143, most file systems 255."""


@cache
def try_store(root: Path, folders: tuple[Path, ...]) -> None:
    """Raises UserError unless `folders` can be written and files below `root` can be synced, renamed and locked.

    Takes a few milliseconds the first time and nothing later.
    """
    for folder in folders:
        check_writable(folder)
    trial = root / "drafts" / f"trial-{token_hex(4)}-".ljust(LONGEST_NAME, "x")
    with file_faults_told(root):
        try:
            trial.mkdir()
            _write(trial)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(root)) from error
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        _lock(root / "locks" / f".trial-{token_hex(4)}")


def check_writable(folder: Path) -> None:
    """Raises UserError if this user can make no files in `folder`; the message names its owner."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(
            f"{folder} cannot be written (permission denied, or mounted read-only): ask its owner, "
            f"{owner_of(folder)}, for write permission (chmod -R g+rwX), or set SUBLIM_STORE to a folder of your own; "
            "`sublim store ls`, `runs` and `report` need none"
        )


def check_renaming(draft: Path, beside: Path) -> None:
    """Raises UserError unless the folder `draft` can be moved into the folder `beside` by a rename, as in a commit."""
    there = beside / f".{draft.name}"
    with file_faults_told(beside):
        draft.rename(there)
        there.rename(draft)


def _write(trial: Path) -> None:
    old, new = trial / "old", trial / "new"
    old.write_bytes(b"old")
    new.write_bytes(bytes(4096))
    sync(new)
    new.replace(old)
    sync(trial)
    if old.stat().st_size != 4096:
        raise UserError(
            f"the file system of {trial.parents[1]} loses what is written: set SUBLIM_STORE to another folder"
        )


def _lock(path: Path) -> None:
    """Checks that a lock cannot be taken twice: some FUSE file systems grant it to both."""
    holders: list[int | None] = []
    try:
        holders += [try_lock(path), try_lock(path)]
    finally:
        path.unlink(missing_ok=True)
    for descriptor in filter(None, holders):
        os.close(descriptor)
    if holders[0] is None or holders[1] is not None:
        raise no_locks(path.parent, "one that is held is given to a second process")
