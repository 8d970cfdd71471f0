"""Uploading and downloading payloads: in parallel, verified, and resumed after an interruption."""

import os
import shutil
import threading
from pathlib import Path

from sublim.core.digest import digest_file
from sublim.core.errors import UserError, file_faults_told
from sublim.files.large_files import in_parallel
from sublim.files.syncing import sync
from sublim.store.payloads import Files
from sublim.store.s3 import PART, Bucket


class DamagedObject(UserError):
    """An object in the store differs from its manifest."""


def send(bucket: Bucket, files: Files, folder: Path, under: str) -> None:
    """Uploads the files of a payload, except those that are in the bucket already."""

    def one(name: str) -> None:
        there = f"{under}/{name}"
        if bucket.described(there) != (files[name].size, files[name].sha256):
            bucket.upload(folder / name, there, files[name].sha256)

    in_parallel(one, files)


def receive(bucket: Bucket, files: Files, under: str, staging: Path) -> Path:
    """Downloads the files of a payload into `staging` and returns the folder with them.

    Goes on with the parts that an interrupted call left there. Raises DamagedObject where the hashes differ.
    """
    with file_faults_told(staging):
        damaged = _fill(bucket, files, under, staging)
        if damaged:  # after a crash, parts may be recorded whose bytes never reached the disk
            shutil.rmtree(staging)
            damaged = _fill(bucket, files, under, staging)
    if damaged:
        shutil.rmtree(staging)
        raise DamagedObject(f"{under}/{damaged[0]} is not what its manifest says")
    return staging / "payload"


def _fill(bucket: Bucket, files: Files, under: str, staging: Path) -> list[str]:
    payload, journal = staging / "payload", staging / "parts"
    payload.mkdir(parents=True, exist_ok=True)
    for name, entry in files.items():
        (payload / name).parent.mkdir(parents=True, exist_ok=True)
        with (payload / name).open("ab") as file:
            file.truncate(entry.size)
    noted = journal.read_text(encoding="utf-8") if journal.exists() else ""
    done = set(noted.rpartition("\n")[0].splitlines())  # without a last line that was cut off
    parts = [f"{start} {name}" for name, entry in files.items() for start in range(0, entry.size, PART)]
    writing = threading.Lock()

    def one(part: str) -> None:
        start, name = int(part.partition(" ")[0]), part.partition(" ")[2]
        stop = min(start + PART, files[name].size)
        body = bucket.read(f"{under}/{name}", start, stop)
        if body is None or len(body) != stop - start:
            raise DamagedObject(f"{under}/{name} is missing or truncated")
        with (payload / name).open("r+b") as file:
            file.seek(start)
            file.write(body)
        with writing, journal.open("a", encoding="utf-8") as notes:
            notes.write(f"{part}\n")

    if not noted.endswith("\n"):
        journal.write_text("".join(f"{part}\n" for part in sorted(done)), encoding="utf-8")
    in_parallel(one, [part for part in parts if part not in done])
    for name, entry in files.items():
        sync(payload / name)
        # With the time of the manifest it need not be hashed again.
        os.utime(payload / name, ns=(entry.mtime_ns, entry.mtime_ns))
    return [name for name, entry in files.items() if digest_file(payload / name) != entry.sha256]
