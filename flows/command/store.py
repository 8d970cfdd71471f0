"""`sublim store ls | verify | forget | gc | push | create`: what the store holds, and its upkeep."""

import argparse
from datetime import datetime
from typing import TYPE_CHECKING

from flows.command.run import Subparsers
from sublim.core.errors import UserError
from sublim.files.group_rights import owner_of
from sublim.store.cleaning import collect_garbage
from sublim.store.folder import Store
from sublim.store.manifest import Manifest
from sublim.store.opening import open_store

if TYPE_CHECKING:
    from sublim.store.bucket import SharedStore


def register(commands: "Subparsers[argparse.ArgumentParser]") -> None:
    """Adds `store` and its commands."""
    store = commands.add_parser("store", help="list, verify and clean the store of results")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    command = actions.add_parser("ls", help="every artifact: stage, key, size, age")
    command.set_defaults(run=ls)
    command = actions.add_parser("verify", help="hash every file again and report what changed")
    command.set_defaults(run=verify)
    command = actions.add_parser("forget", help="remove an artifact, so that its stage runs again")
    command.add_argument("stage", metavar="STAGE")
    command.add_argument("key", metavar="KEY", help="six or more digits of its key")
    command.set_defaults(run=forget)
    command = actions.add_parser("gc", help="remove what killed runs left behind")
    command.add_argument("--unreferenced", action="store_true", help="also artifacts that no run in the store used")
    command.add_argument("--copies", action="store_true", help="also files here that the bucket has, unused for a day")
    command.add_argument("--dry-run", action="store_true", help="only say what would go")
    command.set_defaults(run=gc)
    command = actions.add_parser("push", help="upload what was made while the store in the bucket was out of reach")
    command.set_defaults(run=push)
    command = actions.add_parser("create", help="make the store, also where one was before and is gone")
    command.set_defaults(run=create)


def shared(store: Store) -> "SharedStore | None":
    """The store when it is in a bucket."""
    if not store.address.startswith("s3://"):
        return None
    from sublim.store.bucket import SharedStore  # boto3 takes half a second to import

    return store if isinstance(store, SharedStore) else None


def ls(options: argparse.Namespace) -> int:
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
    print(f"{total / 2**20:.1f} MiB in all")
    return 0


def _place(bucket: "SharedStore | None", manifest: Manifest) -> str:
    if bucket is None:
        return ""
    from sublim.store.bucket_upkeep import describe_place

    return f"  {describe_place(bucket, manifest.artifact)}"


def verify(options: argparse.Namespace) -> int:
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
            continue  # nothing is known about it
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


def forget(options: argparse.Namespace) -> int:
    store = open_store()
    manifest = store.search(options.key, stage=options.stage)
    store.forget(manifest)
    print(f"forgot {manifest.artifact.stage} {manifest.artifact.key[:12]}")
    return 0


def gc(options: argparse.Namespace) -> int:
    store = open_store()
    store.refresh("runs/*/run.json")
    removed = collect_garbage(store, unreferenced=options.unreferenced, dry_run=options.dry_run)
    if bucket := shared(store):
        from sublim.store.bucket_upkeep import clean_bucket, drop_copies

        removed += clean_bucket(bucket, dry_run=options.dry_run)
        if options.copies:
            removed += drop_copies(bucket, dry_run=options.dry_run)
    for path, size in removed:
        print(f"{path}  {size / 2**20:.2f} MiB")
    verb = "would go" if options.dry_run else "removed"
    print(f"{sum(size for _, size in removed) / 2**20:.1f} MiB {verb}")
    return 0


def push(options: argparse.Namespace) -> int:
    store = open_store()
    bucket = shared(store)
    if bucket is None:
        raise UserError(f"the store {store.address} is a folder: nothing is to be uploaded")
    waiting = len(bucket.pending())
    bucket.ready()
    print(f"{waiting} artifacts uploaded to {store.address}")
    return 0


def create(options: argparse.Namespace) -> int:
    store = open_store(anew=True)
    store.ready()
    print(store.address)
    return 0
