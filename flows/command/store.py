"""`sublim store ls | verify | forget | gc | push | create`: what the store holds, and its maintenance."""

import sys
from datetime import datetime
from typing import TYPE_CHECKING, cast

from cyclopts import App

from flows.command.flags import Flag, Key
from sublim.core.errors import UserError
from sublim.files.group_rights import owner_of
from sublim.store.cleaning import collect_garbage
from sublim.store.folder import Store
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store

if TYPE_CHECKING:
    from sublim.store.bucket import SharedStore


app = App(name="store")


def shared(store: Store) -> "SharedStore | None":
    """The store if it is in a bucket, otherwise None."""
    return cast("SharedStore", store) if store.address.startswith("s3://") else None


@app.command
def ls() -> int:
    """List every artifact with its stage, key, size, date and duration."""
    total, store = 0, open_store()
    bucket = shared(store)
    for manifest in store.manifests():
        size = sum(entry.size for entry in manifest.files.values())
        total += size
        started = datetime.fromisoformat(manifest.provenance.started)
        print(
            f"{manifest.artifact.stage:20} {manifest.artifact.key[:12]}  {size / 2**20:10.2f} MiB  "
            f"{started:%Y-%m-%d %H:%M}  {manifest.provenance.seconds:9.1f} s{_place(bucket, manifest)}"
        )
    if not total:
        print(f"no artifacts in {store.address} yet: the stages of a run make them", file=sys.stderr)
    print(f"{total / 2**20:.1f} MiB in all")
    return 0


def _place(bucket: "SharedStore | None", manifest: Manifest) -> str:
    if bucket is None:
        return ""
    from sublim.store.bucket_upkeep import describe_place

    return f"  {describe_place(bucket, manifest.artifact)}"


@app.command
def verify() -> int:
    """Hash every file again, and report what is damaged."""
    store = open_store()
    bucket = shared(store)
    problems = checked = unread = 0
    for manifest in store.manifests():
        checked += 1
        try:
            problem = store.problem(manifest.artifact, deep=True)
        except UserError as error:
            unread += 1
            print(error)
            continue  # nothing is known about this one
        if problem:
            problems += 1
            print(f"{problem}: the next run that needs it {'fetches' if bucket else 'makes'} it again")
        for extra in store.extras(manifest):
            print(f"{extra} is none of our files, and no damage: left alone")
        if bucket and bucket.uploaded(manifest.artifact):
            from sublim.store.bucket_upkeep import damage_in_bucket

            name = f"{manifest.artifact.stage} {manifest.artifact.key[:12]}"
            for damage in damage_in_bucket(bucket, manifest):
                problems += 1
                print(f"{damage}: `sublim store forget {name}`, and the next run makes it again")
    for folder in store.unreadable():
        problems += 1
        name = folder.relative_to(store.root)
        print(f"{name} has no readable manifest: the next run that needs it makes it again")
    for folder in store.unreadable_here():
        unread += 1
        print(f"{folder} cannot be read (permission denied): ask its owner, {owner_of(folder)}, for chmod -R g+rX")
    print(f"{checked} artifacts hashed, {problems} damaged" + (f", {unread} not yours to read" if unread else ""))
    return 1 if problems or unread else 0


@app.command
def forget(stage: str, key: Key, /) -> int:
    """Remove an artifact, given by its stage and key, so that the stage runs again."""
    store = open_store()
    manifest = store.search(key, stage=stage)
    store.forget(manifest)
    print(f"forgot {manifest.artifact.stage} {manifest.artifact.key[:12]}")
    return 0


@app.command
def gc(*, unreferenced: Flag = False, copies: Flag = False, dry_run: Flag = False) -> int:
    """Remove files that killed runs left behind.

    Args:
        unreferenced: Remove also the artifacts that no run in the store used.
        copies: Remove also local copies, unused for a day, of files that are in the bucket.
        dry_run: Only list what would be removed.
    """
    store = open_store()
    store.refresh("runs/*/run.json")
    removed = collect_garbage(store, unreferenced=unreferenced, dry_run=dry_run)
    if bucket := shared(store):
        from sublim.store.bucket_upkeep import clean_bucket, drop_copies

        removed += clean_bucket(bucket, dry_run=dry_run)
        if copies:
            removed += drop_copies(bucket, dry_run=dry_run)
    for path, size in removed:
        print(f"{path}  {size / 2**20:.2f} MiB")
    verb = "would go" if dry_run else "removed"
    print(f"{sum(size for _, size in removed) / 2**20:.1f} MiB {verb}")
    return 0


@app.command
def push() -> int:
    """Upload the artifacts that were made while the bucket of the store could not be reached."""
    store = open_store()
    bucket = shared(store)
    if bucket is None:
        raise UserError(f"the store {store.address} is a folder, not a bucket: there is nothing to upload")
    waiting = len(bucket.pending())
    bucket.ready()
    print(f"{waiting} artifacts uploaded to {store.address}")
    return 0


@app.command
def create() -> int:
    """Create the store, also in the place of one that was lost."""
    store = open_store(anew=True)
    store.ready()
    print(store.address)
    return 0
