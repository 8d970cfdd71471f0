"""The user's cache folder. It only saves time: without a folder that can be written, nothing is kept."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from sublim.core.errors import UserError
from sublim.files.whole_files import write_whole


def cache_home() -> Path | None:
    """XDG_CACHE_HOME or `~/.cache`; None for a user without a home folder, as in some containers."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if cache.is_absolute():  # the XDG specification says to ignore others
        return cache
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def recall(name: str) -> dict[str, Any]:
    """What was kept under `name`; empty if there is nothing, or nothing readable."""
    cache = cache_home()
    try:
        found = json.loads((cache / "sublim" / name).read_bytes()) if cache else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(name: str, content: dict[str, Any]) -> None:
    """Replaces what is kept under `name`, in one step. Does nothing where the cache folder cannot be written."""
    if cache := cache_home():
        path = cache / "sublim" / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(content, indent=1))


def cache_folder() -> Path:
    """The folder in which copies of buckets are kept: SUBLIM_CACHE, or `sublim/stores` in the user's cache folder."""
    if where := os.environ.get("SUBLIM_CACHE"):
        return Path(where).expanduser()
    if (cache := cache_home()) is None:
        raise UserError("this user has no home folder for copies of the bucket's files: set SUBLIM_CACHE to a folder")
    return cache / "sublim" / "stores"
