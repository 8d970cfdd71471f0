"""Digests of a user's model folders; the digest of a file is remembered by path, size and modification time."""

from pathlib import Path

from sublim.core.digest import digest_files
from sublim.files.large_files import digest_each
from sublim.files.user_cache import recall, remember
from sublim.models.files import loaded_files

MEMORY = "local-digests.json"
"""Name of the cache file, which maps `path|size|mtime_ns` to the SHA-256 of the file."""


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files that loading the model reads.

    A file with the same path, size and modification time as in an earlier call is not read again.
    """
    folder = folder.expanduser().resolve()
    remembered = recall(MEMORY)
    entries: dict[str, str] = {}
    for name in loaded_files(folder):
        stat = (folder / name).stat()
        entries[name] = f"{folder / name}|{stat.st_size}|{stat.st_mtime_ns}"
    if unread := [name for name, entry in entries.items() if entry not in remembered]:
        remembered |= {entries[name]: found for name, found in digest_each(folder, unread).items()}
        remember(MEMORY, remembered)
    return digest_files({name: remembered[entry] for name, entry in entries.items()})
