"""Where stores were seen, so that a share that is not mounted is told from a store that is yet to be made."""

import socket
from pathlib import Path

from sublim.core.errors import UserError
from sublim.files.user_cache import recall, remember

KEPT = 100
MEMORY = "stores.json"
"""From host and path of a store to the device it lies on: hosts that share a home have disks of their own."""
_noted: set[tuple[Path, int]] = set()


def check_mounted(root: Path) -> None:
    """Raises UserError for a store that was there, on another file system than the one that lies at its place now."""
    seen = recall(MEMORY).get(_name(root))
    if seen is not None and seen != _device(root):
        raise UserError(
            f"the store {root} is gone, and its folder is on another file system than before: is the share mounted? "
            "`sublim store create` starts a new store there"
        )


def note(root: Path) -> None:
    """Remembers where a store is; once per process is enough."""
    device = _device(root)
    if (root, device) in _noted:
        return
    _noted.add((root, device))
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
