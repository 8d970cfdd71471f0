"""What a store needs of its file system, tried once in each process before anything is computed."""

import os
import shutil
from pathlib import Path
from secrets import token_hex

from sublim.core.errors import UserError, file_faults_told
from sublim.files.group_rights import owner_of
from sublim.files.locks import no_locks, try_lock
from sublim.files.syncing import sync

LONGEST_NAME = 140
"""Bytes of the longest file name that is made; eCryptfs takes 143, most others 255."""
_tried: set[Path] = set()


def try_store(root: Path, folders: list[Path]) -> None:
    """Raises UserError unless `folders` can be written, and new files below `root` synced, renamed and locked.

    Takes a few milliseconds, and none the second time.
    """
    if root in _tried:
        return
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
    _tried.add(root)


def check_writable(folder: Path) -> None:
    """Raises UserError naming a folder in which this user can make no files, and its owner."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(
            f"{folder} cannot be written (permission denied, or mounted read-only): ask its owner, "
            f"{owner_of(folder)}, for write permission (chmod -R g+rwX), or set SUBLIM_STORE to a folder of your own; "
            "`sublim store ls`, `runs` and `report` need none"
        )


def check_renaming(draft: Path, beside: Path) -> None:
    """Raises UserError unless the folder `draft` can be renamed into the folder `beside`, as a commit does."""
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
    """Two descriptors of one file must exclude each other: some FUSE file systems say yes to both."""
    holders: list[int | None] = []
    try:
        holders += [try_lock(path), try_lock(path)]
    finally:
        path.unlink(missing_ok=True)
    for descriptor in filter(None, holders):
        os.close(descriptor)
    if holders[0] is None or holders[1] is not None:
        raise no_locks(path.parent, "one that is held is given to a second process")
