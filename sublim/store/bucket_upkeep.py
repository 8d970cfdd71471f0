"""Upkeep of a store in a bucket: finding damage, and removing incomplete uploads and unneeded local copies."""

import re
import time
from collections.abc import Iterator

from sublim.files.large_files import in_parallel
from sublim.files.locks import locked
from sublim.store.bucket import SharedStore
from sublim.store.bucket_layout import is_manifest
from sublim.store.cleaning import Removed
from sublim.store.manifest import Artifact, Manifest

DAY = 86_400.0
_PAYLOAD = re.compile(r"(?P<artifact>[a-z0-9_]+/[0-9a-f]{12})/(?P<content>[0-9a-f]{12})/.+")


def damage_in_bucket(store: SharedStore, manifest: Manifest) -> list[str]:
    """What is wrong with an artifact in the bucket, by the sizes and checksums that the server reports."""
    under = store.objects(manifest.artifact)

    def wrong(name: str) -> str | None:
        entry, there = manifest.files[name], store.bucket.described(f"{under}/{name}")
        if there is None:
            return f"{under}/{name} is missing in the store"
        if there[0] != entry.size:
            return f"{under}/{name} has {there[0]} bytes instead of {entry.size} in the store"
        return None if there[1] == entry.sha256 else f"{under}/{name} has another checksum in the store"

    return [problem for problem in in_parallel(wrong, manifest.files) if problem]


def clean_bucket(store: SharedStore, *, age: float = DAY, dry_run: bool = False) -> Removed:
    """Removes uploads without a manifest, and abandoned leases, that are older than `age` seconds.

    Returns their names with their sizes in bytes. With `dry_run` nothing is removed.
    """
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
            removed.append((f"{store.address}/{name} (an upload that was interrupted)", 0))
            if not dry_run:
                store.bucket.abort(name, upload)
    return removed


def drop_copies(store: SharedStore, *, age: float = DAY, dry_run: bool = False) -> Removed:
    """Removes local payloads that the bucket has too and that no stage has used in the last `age` seconds.

    Returns their paths with their sizes in bytes. With `dry_run` nothing is removed.
    """
    removed: Removed = []
    for manifest in store.manifests():
        artifact, folder = manifest.artifact, store.directory(manifest.artifact.stage, manifest.artifact.key)
        payload = folder / "payload"
        if not payload.exists() or not store.uploaded(artifact) or time.time() - folder.stat().st_mtime < age:
            continue
        removed.append((payload.relative_to(store.root).as_posix(), sum(e.size for e in manifest.files.values())))
        if not dry_run:
            with locked(store.lock_path(f"fetch-{artifact.stage}-{artifact.key[:12]}")):
                store.discard(payload)
    return removed


def describe_place(store: SharedStore, artifact: Artifact) -> str:
    """Where the files of an artifact are, in words."""
    if not store.uploaded(artifact):
        return "here, not uploaded yet"
    return "here and in the store" if store.fetched(artifact) else "in the store"


def _contents(store: SharedStore, names: list[str]) -> Iterator[str]:
    for name in names:
        stage, key, _ = name.split("/")
        found = store.bucket.get(name)
        if found is not None:
            # Not parsed: a manifest of a newer version must keep its files too.
            for content in set(re.findall(rb'"content": ?"([0-9a-f]{12})', found.body)):
                yield f"{stage}/{key}/{content.decode()}"
