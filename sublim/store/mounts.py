"""Remembering where stores were, to tell a share that is not mounted from a store that does not exist yet."""

import socket
from functools import cache
from pathlib import Path

from sublim.core.errors import UserError
from sublim.files.user_cache import recall, remember

KEPT = 100
MEMORY = "stores.json"
"""The file that maps the host and path of a store to its device: hosts may share a home and not their disks."""


def check_mounted(root: Path) -> None:
    """Raises UserError for a store that was on another file system than the one that is now at its path."""
    seen = recall(MEMORY).get(_name(root))
    if seen is not None and seen != _device(root):
        raise UserError(
            f"the store {root} is gone, and its folder is on another file system than before: is the share mounted? "
            "`sublim store create` starts a new store there"
        )


def remember_store(root: Path) -> None:
    """Remembers where a store is, once in each process."""
    _remember(root, _device(root))


@cache
def _remember(root: Path, device: int) -> None:
    seen = recall(MEMORY)
    if seen.get(name := _name(root)) != device:
        seen.pop(name, None)
        remember(MEMORY, dict([*seen.items(), (name, device)][-KEPT:]))


def _name(root: Path) -> str:
    return f"{socket.gethostname()}:{root}"


def _device(root: Path) -> int:
    while not root.exists():
        root = root.parent
    return root.stat().st_dev
