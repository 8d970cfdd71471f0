"""Payloads, the files of artifacts: recording each when it is committed, and comparing with that record later."""

import contextlib
import os
from functools import cache
from pathlib import Path, PurePosixPath
from stat import S_IMODE, S_ISDIR, S_ISREG

from sublim.core.digest import digest_file, digest_files, list_files
from sublim.core.errors import UserError
from sublim.files.group_rights import owner_of
from sublim.files.large_files import digest_each
from sublim.files.syncing import sync
from sublim.store.manifest import FileEntry
from sublim.store.manifest_files import read_manifest

Files = dict[str, FileEntry]


def record_files(payload: Path) -> Files:
    """Syncs every file of a payload and records its hash, size and time, by relative path."""
    names = list_files(payload)
    for name in names:
        _let_read(payload / name, payload)
        sync(payload / name)
    stats = {name: (payload / name).stat() for name in names}
    return {
        name: FileEntry(sha256=sha256, size=stats[name].st_size, mtime_ns=stats[name].st_mtime_ns)
        for name, sha256 in digest_each(payload, names).items()
    }


def committed(folder: Path) -> list[str]:
    """Sorted names of the files that were committed in an artifact's payload, or in a folder below it.

    Files that were added later are left out. Where `folder` belongs to no artifact, all files are listed.
    """
    for payload in (folder, *folder.parents):
        if payload.name == "payload" and (manifest := read_manifest(payload.parent / "manifest.json")) is not None:
            paths = [payload / name for name in manifest.files]
            return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_relative_to(folder))
    return list_files(folder)


def matching(folder: Path, pattern: str) -> list[Path]:
    """Sorted paths of the committed files whose names match `pattern` (see `committed`)."""
    return [path for path in map(folder.joinpath, committed(folder)) if path.match(pattern)]


def digest_committed(folder: Path) -> str:
    """SHA-256 over the names and bytes of the committed files (see `committed`)."""
    return digest_files(digest_each(folder, committed(folder)))


def difference(payload: Path, files: Files, *, deep: bool) -> str | None:
    """Describes the first file of `payload` that differs from the record `files`; None when none does.

    A file with the recorded size and time counts as unchanged unless `deep`; any other is hashed again.
    Raises UserError for a file that this user lacks the permission to read.
    """
    try:
        there = S_ISDIR(payload.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):  # any other error is a failure of the store, not a missing payload
        there = False
    if not there:
        return "payload is missing"
    return next(filter(None, (_changed(payload, name, entry, deep=deep) for name, entry in files.items())), None)


def extras(payload: Path, files: Files) -> list[str]:
    """Sorted names of files and folders in a payload that were not committed. They are no damage."""
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents} | {"."}
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(PermissionError):  # files in a folder that cannot be listed can still be read
            found |= {path.relative_to(payload).as_posix() for path in (payload / folder).iterdir()}
    return sorted(found - files.keys() - folders)


def _let_read(path: Path, folder: Path) -> None:
    """Lets everyone read the file who can read the folder: safetensors makes files for their owner alone."""
    now, wanted = path.stat(), folder.stat().st_mode & 0o666
    if now.st_nlink == 1 and wanted & ~now.st_mode:  # a file with a second hard link belongs to somebody else too
        with contextlib.suppress(PermissionError):  # some network file systems allow no chmod
            path.chmod(S_IMODE(now.st_mode) | wanted)


def _changed(payload: Path, name: str, entry: FileEntry, *, deep: bool) -> str | None:
    file = payload / name
    try:
        stat = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    if not S_ISREG(stat.st_mode) or any((payload / parent).is_symlink() for parent in PurePosixPath(name).parents[:-1]):
        return f"{name} is a link or no plain file"
    if stat.st_size != entry.size:
        return f"{name} has {stat.st_size} bytes instead of {entry.size}"
    if not os.access(file, os.R_OK):
        raise UserError(f"{file} cannot be read (permission denied): ask its owner, {owner_of(file)}, for chmod g+r")
    if not deep and stat.st_mtime_ns == entry.mtime_ns:
        return None
    found = digest_file(file) if deep else _digest(file, stat.st_size, stat.st_mtime_ns)
    return None if found == entry.sha256 else f"{name} has changed since it was written"


@cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """Within a process, a file is hashed again only when its size or time has changed."""
    return digest_file(path)
