"""A store in an S3 bucket, `SUBLIM_STORE=s3://bucket/prefix`. The bucket is authoritative; a local folder is its cache.

Objects have the names of the folder's files, except that the files of a payload are below the payload's hash:
`<stage>/<key[:12]>/manifest.json` and `<stage>/<key[:12]>/<content[:12]>/...`. So the files of two machines that built
the same key do not mix. The manifest is uploaded last: where it is, the payload is complete. In the cache, a file
`uploaded` beside a manifest says that the bucket has the artifact.
"""

import errno
import json
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from sublim.core.errors import StoreUnreachable, UserError
from sublim.core.kill_points import kill_point
from sublim.files.locks import locked
from sublim.files.user_cache import cache_folder
from sublim.files.whole_files import write_whole
from sublim.store.bucket_layout import is_manifest, read_marker
from sublim.store.folder import Store
from sublim.store.leases import Lease
from sublim.store.manifest import FORMAT, Artifact, Manifest
from sublim.store.manifest_files import parse_manifest
from sublim.store.s3 import Bucket
from sublim.store.transfers import DamagedObject, receive, send

POLL_SECONDS = 2.0
log = logging.getLogger("sublim.store")


class SharedStore(Store):
    """A store in a bucket, with the folder on this machine that caches it."""

    def __init__(self, bucket: Bucket, root: Path) -> None:
        super().__init__(root)
        self.bucket = bucket

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:  # Prefect pickles what its tasks hold
        return open_bucket, (self.address,)

    @property
    def address(self) -> str:
        """The s3:// address of the store."""
        return self.bucket.address

    def ready(self) -> None:
        """Checks what a run relies on, and uploads what an earlier run could not."""
        self.try_out()
        text = read_marker(self.bucket)
        if self.bucket.put("store.json", text) is not None:
            raise UserError(
                f"the server of {self.address} ignores conditional writes (If-None-Match), "
                "without which two machines could build the same key: use another server, or a shared folder"
            )
        for manifest in self.pending():
            artifact = manifest.artifact
            with locked(self.lock_path(self.record_of(manifest))):
                if not self.uploaded(artifact):
                    self.push(manifest)
                    log.info("%s %s, made earlier, is uploaded now", artifact.stage, artifact.key[:12])

    @contextmanager
    def claimed(
        self, stage: str, key: str, version: int, *, deep: bool, tell: Callable[[str], None]
    ) -> Generator[Artifact | None]:
        """As in a folder; waits while another machine holds the lease of the key."""
        found = self._settled(stage, key, deep=deep)
        record = self.record_name(stage, version, key)
        lease = Lease(self.bucket, f"locks/{record}.json")
        told = False
        while found is None and not lease.take():
            if not told:
                told = True
                tell(f"waiting: {lease.holder} is building {record}")
            time.sleep(min(POLL_SECONDS, lease.seconds / 5))
            found = self._settled(stage, key, deep=deep)
        if found is not None:
            yield found
            return
        with lease.renewed():
            yield self._settled(stage, key, deep=deep)  # another machine may have finished before the lease was taken

    def payload(self, artifact: Artifact) -> Path:
        """The folder of the artifact's files, which are fetched first if they are not here."""
        folder = self._payload(artifact)
        if not folder.exists():
            name = f"{artifact.stage}-{artifact.key[:12]}"
            with locked(self.lock_path(f"fetch-{name}")):
                if not folder.exists():
                    self._fetch(artifact, self.root / "scratch" / "fetch" / name)
        os.utime(folder.parent)  # the time of the last use, for `sublim store gc --copies`
        return folder

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest under `key`, from the cache or else from the bucket; None when neither has it."""
        manifest = super().manifest(stage, key)
        if manifest is None and (manifest := self.shared_manifest(stage, key)) is not None:
            self._adopt(manifest)
        return manifest

    def find(self, stage: str, key: str, *, deep: bool = False) -> Artifact | None:
        """As in a folder, but an artifact that another machine removed, or replaced by other content, is not found."""
        shared, here = self.shared_manifest(stage, key), super().manifest(stage, key)
        if here is not None and (self.uploaded(here.artifact) or shared is not None):
            if shared is None or shared.artifact.content != here.artifact.content:
                return None
        elif shared is not None:
            self._adopt(shared)
        return super().find(stage, key, deep=deep)

    def problem(self, artifact: Artifact, *, deep: bool = False) -> str | None:
        """As in a folder; if only the manifest is here, the artifact counts as intact."""
        manifest = self.manifest(artifact.stage, artifact.key)
        if manifest is not None and manifest.artifact.content == artifact.content and not self.fetched(artifact):
            return None
        return super().problem(artifact, deep=deep)

    def manifests(self) -> Iterator[Manifest]:
        """All readable manifests in the bucket, and those that are not uploaded yet."""
        there = {str(Path(item.name).parent) for item in self.bucket.list() if is_manifest(item.name)}
        for name in there:
            here = (self.root / name / "manifest.json").exists()
            if not here and (manifest := self._read_shared(f"{name}/manifest.json")):
                self._adopt(manifest)
        for manifest in super().manifests():
            if manifest.artifact.name in there or not self.uploaded(manifest.artifact):
                yield manifest

    def share(self, path: Path) -> None:
        """Uploads a small file, or all files of a folder; only warns if the bucket cannot be reached."""
        try:
            for file in sorted(file for file in (path, *path.rglob("*")) if file.is_file()):
                self.bucket.put(file.relative_to(self.root).as_posix(), file.read_bytes(), anyway=True)
        except StoreUnreachable as error:
            log.warning("%s; %s is only on this machine", error, path)

    def refresh(self, pattern: str) -> None:
        """Downloads matching files that are missing here or have another size."""
        for item in list(self.bucket.list(re.split(r"[*?\[]", pattern)[0])):
            path = self.root / item.name
            if fnmatch(item.name, pattern) and (not path.exists() or path.stat().st_size != item.size):
                found = self.bucket.get(item.name)
                if found is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path, found.body)

    def pending(self) -> list[Manifest]:
        """Manifests of the artifacts that were made here and are not in the bucket yet."""
        return [manifest for manifest in super().manifests() if not self.uploaded(manifest.artifact)]

    def uploaded(self, artifact: Artifact) -> bool:
        """Whether the bucket has the artifact, as far as this machine knows."""
        return (self.directory(artifact.stage, artifact.key) / "uploaded").exists()

    def fetched(self, artifact: Artifact) -> bool:
        """Whether the files are here, or should be because they were never uploaded."""
        return self._payload(artifact).exists() or not self.uploaded(artifact)

    def objects(self, artifact: Artifact) -> str:
        """The prefix of the payload's objects in the bucket."""
        return f"{artifact.name}/{artifact.content[:12]}"

    def shared_manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest that the bucket has under `key`; None when there is none or it is damaged."""
        manifest = self._read_shared(f"{stage}/{key[:12]}/manifest.json")
        return manifest if manifest and manifest.artifact.key == key else None

    def _read_shared(self, name: str) -> Manifest | None:
        found = self.bucket.get(name)
        return found and parse_manifest(found.body, f"{self.address}/{name}")

    def push(self, manifest: Manifest) -> Artifact:
        """Uploads an artifact and returns the valid one: it, or the one that another machine committed before."""
        artifact = manifest.artifact
        name = f"{artifact.name}/manifest.json"
        send(self.bucket, manifest.files, self._payload(artifact), self.objects(artifact))
        kill_point("before-manifest")
        text = manifest.model_dump_json(indent=1).encode()
        while self.bucket.put(name, text) is None:
            first = self.shared_manifest(artifact.stage, artifact.key)
            if first is not None and first.artifact.content != artifact.content:
                log.warning("%s %s: another machine was first, its result is used", artifact.stage, artifact.key[:12])
                self._adopt(first, instead=True)
                return first.artifact
            if first is not None:
                break
            self.bucket.delete(name)  # it is damaged, or was removed meanwhile
        self._mark(artifact)
        return artifact

    def _hand_over(self, manifest: Manifest) -> Artifact:
        try:
            return self.push(manifest)
        except StoreUnreachable as error:
            again = "it is kept here and is uploaded by the next `sublim run`, or `sublim store push`"
            log.warning("%s; %s %s: %s", error, manifest.artifact.stage, manifest.artifact.key[:12], again)
            return manifest.artifact

    def _settled(self, stage: str, key: str, *, deep: bool) -> Artifact | None:
        """Brings the cache in line with the bucket for `key`, and returns the artifact if there is one."""
        shared, here = self.shared_manifest(stage, key), super().manifest(stage, key)
        if shared is None:
            if here is None or super().problem(here.artifact, deep=deep):
                return None
            if not self.uploaded(here.artifact):
                return self.push(here)
            log.info("%s %s was removed on another machine", stage, key[:12])
            self.discard(self.directory(stage, key))
            return None
        if here is None or here.artifact.content != shared.artifact.content:
            self._adopt(shared, instead=True)
        self._mark(shared.artifact)
        if self.fetched(shared.artifact) and (problem := super().problem(shared.artifact, deep=deep)):
            log.warning("%s: the copy here is removed, that of the store is fetched when it is needed", problem)
            self.discard(self._payload(shared.artifact))
        return shared.artifact

    def _adopt(self, manifest: Manifest, *, instead: bool = False) -> None:
        """Puts a manifest of the bucket into the cache; with `instead`, in place of the one that is there."""
        target = self.directory(manifest.artifact.stage, manifest.artifact.key)
        draft = self._draft_path("adopted")
        draft.mkdir(parents=True)
        write_whole(draft / "manifest.json", manifest.model_dump_json(indent=1))
        write_whole(draft / "uploaded", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        if instead:
            self.discard(target)
        try:
            draft.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self.discard(draft)  # another process did the same

    def _mark(self, artifact: Artifact) -> None:
        if not self.uploaded(artifact):
            write_whole(self.directory(artifact.stage, artifact.key) / "uploaded", "")

    def _fetch(self, artifact: Artifact, staging: Path) -> None:
        manifest = self.manifest(artifact.stage, artifact.key)
        name = f"{artifact.stage} {artifact.key[:12]}"
        if manifest is None:
            raise UserError(f"{name} was removed from the store: run again")
        started = time.monotonic()
        try:
            payload = receive(self.bucket, manifest.files, self.objects(manifest.artifact), staging)
        except DamagedObject as error:
            raise UserError(f"{error}: `sublim store forget {name}`, and the next run makes it again") from error
        payload.rename(self._payload(artifact))
        self.discard(staging)
        size = sum(entry.size for entry in manifest.files.values()) / 2**20
        log.info("%s fetched: %.1f MiB in %.1f s", name, size, time.monotonic() - started)

    def _forget_elsewhere(self, manifest: Manifest) -> None:
        artifact = manifest.artifact
        lease = Lease(self.bucket, f"locks/{self.record_of(manifest)}.json")
        while not lease.take():
            time.sleep(POLL_SECONDS)
        with lease.renewed():
            self.bucket.delete(f"{artifact.name}/manifest.json")  # first: files without a manifest are garbage
            for item in list(self.bucket.list(f"{artifact.name}/")):
                self.bucket.delete(item.name)


def open_bucket(address: str) -> SharedStore:
    """The store at an s3:// address, on the server that the environment names."""
    return connected(address, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@lru_cache(maxsize=8)
def connected(address: str, endpoint: str | None) -> SharedStore:
    """The store at an s3:// address, connected once in each process. Raises UserError where it cannot be used."""
    bucket = Bucket(address)
    text = read_marker(bucket)
    try:
        fields = json.loads(text)
        found, name = int(fields["format"]), str(fields["id"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{bucket.address}/store.json is damaged: if this is no store, take an empty prefix") from None
    if found > FORMAT:
        raise UserError(f"the store {bucket.address} has format {found}, this version reads {FORMAT}: update sublim")
    # The name has the store's id, so that a new store under an old address does not get the old one's cache.
    words = re.sub(r"[^a-zA-Z0-9.-]+", "-", bucket.address.removeprefix("s3://"))
    return SharedStore(bucket, cache_folder() / f"{words}-{name[:8]}").create()
