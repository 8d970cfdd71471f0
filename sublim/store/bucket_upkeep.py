"""Upkeep of a store in a bucket: what is damaged there, what nobody will ever need, and which copies here are spare."""

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sublim.files.locks import locked
from sublim.store.bucket import SharedStore
from sublim.store.bucket_layout import is_manifest
from sublim.store.cleaning import Removed
from sublim.store.manifest import Artifact, Manifest
from sublim.store.transfers import LANES

DAY = 86_400.0
_PAYLOAD = re.compile(r"(?P<artifact>[a-z0-9_]+/[0-9a-f]{12})/(?P<content>[0-9a-f]{12})/.+")


def damage_in_bucket(store: SharedStore, manifest: Manifest) -> list[str]:
    """What the bucket lacks of an artifact, by the sizes and checksums that the server itself holds."""
    under = store.objects(manifest.artifact)

    def wrong(name: str) -> str | None:
        entry, there = manifest.files[name], store.bucket.described(f"{under}/{name}")
        if there is None:
            return f"{under}/{name} is missing in the store"
        if there[0] != entry.size:
            return f"{under}/{name} has {there[0]} bytes instead of {entry.size} in the store"
        return None if there[1] == entry.sha256 else f"{under}/{name} has another checksum in the store"

    with ThreadPoolExecutor(LANES) as pool:
        return [problem for problem in pool.map(wrong, manifest.files) if problem]


def clean_bucket(store: SharedStore, *, age: float = DAY, dry_run: bool = False) -> Removed:
    """Removes uploads that never got their manifest and leases of the dead, once they are older than `age` seconds."""
    objects = list(store.bucket.list())
    contents = set(_contents(store, [item.name for item in objects if is_manifest(item.name)]))
    removed: Removed = []
    for item in objects:
        found = _PAYLOAD.fullmatch(item.name)
        orphan = found is not None and f"{found['artifact']}/{found['content']}" not in contents
        if (orphan or item.name.startswith("locks/")) and item.age > age:
            removed.append((f"{store.address}/{item.name}", item.size))
            if not dry_run:
                store.bucket.delete(item.name)
    for name, upload, old in store.bucket.unfinished():
        if old > age:
            removed.append((f"{store.address}/{name} (an upload that was cut off)", 0))
            if not dry_run:
                store.bucket.abort(name, upload)
    return removed


def drop_copies(store: SharedStore, *, age: float = DAY, dry_run: bool = False) -> Removed:
    """Removes payloads here that the bucket has too and that no stage has asked for in the last `age` seconds."""
    removed: Removed = []
    for manifest in store.manifests():
        artifact, folder = manifest.artifact, store.directory(manifest.artifact.stage, manifest.artifact.key)
        payload = folder / "payload"
        if not payload.exists() or not store.uploaded(artifact) or time.time() - folder.stat().st_mtime < age:
            continue
        removed.append((payload.relative_to(store.root).as_posix(), sum(e.size for e in manifest.files.values())))
        if not dry_run:
            with locked(store.lock_path(f"fetch-{artifact.stage}-{artifact.key[:12]}")):
                aside = store.root / "drafts" / f"dropped-{artifact.key[:12]}"
                aside.parent.mkdir(parents=True, exist_ok=True)
                payload.rename(aside)
                shutil.rmtree(aside)
    return removed


def place(store: SharedStore, artifact: Artifact) -> str:
    """Where an artifact's files are."""
    if not store.uploaded(artifact):
        return "here, not uploaded yet"
    return "here and in the store" if store.fetched(artifact) else "in the store"


def _contents(store: SharedStore, names: list[str]) -> Iterator[str]:
    for name in names:
        stage, key, _ = name.split("/")
        found = store.bucket.get(name)
        if found is not None:
            # Whatever cannot be read may be of a newer version: all that lies beside it stays.
            for content in set(re.findall(rb'"content": ?"([0-9a-f]{12})', found.body)):
                yield f"{stage}/{key}/{content.decode()}"
