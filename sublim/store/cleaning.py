"""Garbage collection: drafts, scratch folders and records that killed runs left, and artifacts that no run used."""

import json
import re
import shutil
from pathlib import Path

from sublim.files.locks import is_locked
from sublim.store.folder import Store

Removed = list[tuple[str, int]]
_RECORD = re.compile(r"(?P<stage>[a-z0-9_]+)-v\d+-(?P<key>[0-9a-f]{32})$")


def collect_garbage(store: Store, *, unreferenced: bool = False, dry_run: bool = False) -> Removed:
    """Removes what killed runs left behind, and returns the paths below the store with their sizes in bytes.

    These are drafts, scratch folders, and records without an artifact, of stages that are not being built now.
    With `unreferenced` also every artifact that no run record in the store names.
    """
    leftovers = [path for path in _leftovers(store) if not _in_use(store, path)]
    removed = [(_name(store, path), _size(path)) for path in leftovers]
    if not dry_run:
        for path in leftovers:
            _remove(path)
    if unreferenced:
        runs = [json.loads(run.read_bytes()) for run in (store.root / "runs").glob("*/run.json")]
        used = {stage["key"] for run in runs for stage in run["stages"]}
        for manifest in list(store.manifests()):
            if manifest.artifact.key not in used:
                directory = store.directory(manifest.artifact.stage, manifest.artifact.key)
                removed.append((_name(store, directory), _size(directory)))
                if not dry_run:
                    store.forget(manifest)
    return removed


def _leftovers(store: Store) -> list[Path]:
    records: list[Path] = []
    for path in (store.root / "records").glob("*"):
        match = _RECORD.match(path.name)
        # A name that does not match is random: Prefect's record of a failed attempt.
        if match is None or not store.directory(match["stage"], match["key"]).exists():
            records.append(path)
    return [*(store.root / "drafts").glob("*"), *(store.root / "scratch").glob("*/*"), *records]


def _in_use(store: Store, path: Path) -> bool:
    """Whether the stage that `path` belongs to is being built, that is, a lock with its key is held."""
    found = re.search(r"[0-9a-f]{12}", path.name)
    if found is None:
        return False
    return any(map(is_locked, (store.root / "locks").glob(f"*-{found[0]}*.lock")))


def _name(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
