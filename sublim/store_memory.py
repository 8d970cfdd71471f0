"""Where stores were seen, so that a share that is not mounted is told from a store that is yet to be made."""

import json
import os
from pathlib import Path

from sublim.errors import UserError
from sublim.local_digest import memory_file

KEPT = 100
_noted: set[tuple[Path, int]] = set()


def check_mounted(root: Path) -> None:
    """Raises UserError for a store that was there, on another file system than the one that lies at its place now."""
    seen = _seen().get(str(root))
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
    seen = _seen()
    if seen.get(str(root)) != device:
        seen.pop(str(root), None)
        kept = dict([*seen.items(), (str(root), device)][-KEPT:])
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(kept, indent=1))
        draft.replace(path)


def _path() -> Path:
    return memory_file().with_name("stores.json")


def _seen() -> dict[str, int]:
    path = _path()
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:  # it is a memory aid, and no more
        return {}


def _device(root: Path) -> int:
    while not root.exists():
        root = root.parent
    return root.stat().st_dev
