"""Payloads: noting every file when it is committed, and whether each is still what was noted."""

import contextlib
import os
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
_hashed: dict[tuple[Path, int, int], str] = {}  # per process: a file is hashed again only when it changed


def noted(payload: Path) -> Files:
    """Every file of a payload as it is, once it is on the disk."""
    names = list_files(payload)
    paths = [payload / name for name in names]
    for path in paths:
        _let_read(path, payload)
        sync(path)
    stats = [path.stat() for path in paths]
    return {
        name: FileEntry(sha256=sha256, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
        for name, sha256, stat in zip(names, digest_each(paths), stats, strict=True)
    }


def committed(folder: Path) -> list[str]:
    """Names of the files in an artifact's payload or a folder below it that were committed, sorted.

    Not what somebody put there later. All files, where `folder` is no artifact's.
    """
    for payload in (folder, *folder.parents):
        if payload.name == "payload" and (manifest := read_manifest(payload.parent / "manifest.json")) is not None:
            paths = [payload / name for name in manifest.files]
            return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_relative_to(folder))
    return list_files(folder)


def matching(folder: Path, pattern: str) -> list[Path]:
    """Paths of the files that `committed` gives whose names match `pattern`, sorted."""
    return [path for path in map(folder.joinpath, committed(folder)) if path.match(pattern)]


def digest_committed(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files that `committed` gives."""
    names = committed(folder)
    return digest_files(dict(zip(names, digest_each(folder / name for name in names), strict=True)))


def difference(payload: Path, files: Files, *, deep: bool) -> str | None:
    """How the files of `payload` differ from `files`, for the first that does; None when each is what was committed.

    A file whose size and time are as noted is taken as unchanged unless `deep`; any other is hashed again.
    Raises UserError for a file that this user may not read: nothing is known about it.
    """
    try:
        there = S_ISDIR(payload.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):  # any other error is the store's, never a miss
        there = False
    if not there:
        return "payload is missing"
    return next(filter(None, (_changed(payload, name, entry, deep=deep) for name, entry in files.items())), None)


def extras(payload: Path, files: Files) -> list[str]:
    """What lies among the files of a payload and is none of them: no damage, whoever put it there."""
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents} | {"."}
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(PermissionError):  # what cannot be listed can still be read by name
            found |= {path.relative_to(payload).as_posix() for path in (payload / folder).iterdir()}
    return sorted(found - files.keys() - folders)


def _let_read(path: Path, folder: Path) -> None:
    """Whoever may read the folder may read the file: safetensors makes files for their owner alone."""
    now, wanted = path.stat(), folder.stat().st_mode & 0o666
    if now.st_nlink == 1 and wanted & ~now.st_mode:  # a link's other name is another's business
        with contextlib.suppress(PermissionError):  # file systems with rights of their own keep them
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
    unchanged = stat.st_mtime_ns == entry.mtime_ns and not deep
    return None if unchanged or _sha256(file, deep=deep) == entry.sha256 else f"{name} has changed since it was written"


def _sha256(path: Path, *, deep: bool) -> str:
    stat = path.stat()
    memo = (path, stat.st_size, stat.st_mtime_ns)
    if deep or memo not in _hashed:
        _hashed[memo] = digest_file(path)
    return _hashed[memo]
