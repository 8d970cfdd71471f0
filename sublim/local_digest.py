"""Digests of a user's own model folders, hashed once and remembered by path, size and time of change."""

import os
import tempfile
from pathlib import Path

import orjson

from sublim.digest import digest_files
from sublim.errors import UserError
from sublim.large_files import digest_each
from sublim.model_files import loaded_files


def memory_file() -> Path:
    """Where digests are remembered: `local-digests.json` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "sublim" / "local-digests.json"


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of the files that loading the model reads.

    A file with the path, size and mtime_ns of an earlier call is not read again.
    """
    folder = folder.expanduser().resolve()
    remembered = recall()
    entries: dict[str, str] = {}
    for name in loaded_files(folder):
        stat = (folder / name).stat()
        entries[name] = f"{folder / name}|{stat.st_size}|{stat.st_mtime_ns}"
    if unread := [name for name, entry in entries.items() if entry not in remembered]:
        digests = digest_each(folder / name for name in unread)
        remembered |= {entries[name]: found for name, found in zip(unread, digests, strict=True)}
        remember(remembered)
    return digest_files({name: remembered[entry] for name, entry in entries.items()})


def recall() -> dict[str, str]:
    """What is remembered: from `path|size|mtime_ns` to the SHA-256 of the file."""
    path = memory_file()
    if not path.is_file():
        return {}
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): delete it") from error


def remember(digests: dict[str, str]) -> None:
    """Replaces the memory in one step, so that a second process never reads half of it."""
    path = memory_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(digests, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))
    Path(draft).replace(path)
