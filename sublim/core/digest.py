"""Digests: SHA-256 of canonical JSON and of files, equal in every process and on every machine."""

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson

from sublim.core.config import Config
from sublim.core.foreign import is_foreign

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]


def canonical(value: Any) -> JSON:
    """`value` as plain JSON: configs by their identity fields, without class names.

    Raises TypeError for whatever has no stable form (paths, sets, objects, NaN): there is no fallback.
    """
    match value:
        case None | bool() | str():
            return value
        case int():
            if not -(2**63) <= value < 2**64:
                raise TypeError(f"{value} is outside the 64-bit integers JSON readers agree on")
            return value
        case float():
            if not math.isfinite(value):
                raise TypeError(f"{value} has no JSON form")
            return value
        case Config():
            return canonical(value.identity())
        case Mapping():
            mapping = cast(Mapping[Any, Any], value)
            if not all(isinstance(key, str) for key in mapping):
                raise TypeError("keys of a digested mapping must be strings")
            return {key: canonical(mapping[key]) for key in sorted(mapping)}
        case list() | tuple():
            return [canonical(item) for item in cast(list[Any], value)]
        case _:
            raise TypeError(f"a {type(value).__name__} has no canonical form")


def canonical_bytes(value: Any) -> bytes:
    """Canonical JSON as bytes: sorted keys, no spaces, UTF-8."""
    return orjson.dumps(canonical(value), option=orjson.OPT_SORT_KEYS)


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(files: Mapping[str, str]) -> str:
    """The digest of a directory, from relative path to the SHA-256 of each file."""
    return digest(sorted(files.items()))


def digest_directory(directory: Path) -> str:
    """SHA-256 over the relative paths and bytes of every file below `directory`."""
    return digest_files({path: digest_file(directory / path) for path in list_files(directory)})


def list_files(directory: Path) -> list[str]:
    """Relative POSIX paths of the files below `directory`, sorted; without what file managers and the like leave there.

    Raises OSError when it cannot all be read, TypeError on a link, pipe or socket: a digest needs plain files.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(directory, onerror=_rise):
        folders[:] = [name for name in folders if not is_foreign(name)]
        for path in (Path(folder, name) for name in folders + files if not is_foreign(name)):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append(path.relative_to(directory).as_posix())
            elif not stat.S_ISDIR(mode):
                raise TypeError(f"{path} is a link or no plain file: a digest needs plain files")
    return sorted(found)


def _rise(error: OSError) -> None:
    raise error
