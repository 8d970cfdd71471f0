"""Reading a store: finding artifacts by their keys and verifying them. Nothing here changes the store."""

import re
from collections.abc import Iterator
from pathlib import Path

from sublim.core.errors import UserError
from sublim.store.layout import RESERVED
from sublim.store.manifest import Artifact, Manifest, input_artifacts
from sublim.store.manifest_files import forbidden, read_manifest
from sublim.store.payloads import difference, extras

_FOLDER = re.compile("[0-9a-f]{12}")
"""Names of artifacts' folders."""


class StoreReader:
    """A folder of artifacts, each in `<stage>/<key[:12]>/` as `payload/` and `manifest.json`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def address(self) -> str:
        """The value of SUBLIM_STORE that names this store."""
        return str(self.root)

    def directory(self, stage: str, key: str) -> Path:
        """The folder of an artifact, whether or not it exists."""
        return self.root / stage / key[:12]

    def payload(self, artifact: Artifact) -> Path:
        """The folder of the artifact's files. A store in a bucket fetches them first."""
        return self._payload(artifact)

    def lock_path(self, record: str) -> Path:
        """The lock that a run holds while it builds the artifact with this record name."""
        return self.root / "locks" / f"{record}.lock"

    def record_name(self, stage: str, version: int, key: str) -> str:
        """Name of Prefect's result record, and of the lock, for a key."""
        return f"{stage}-v{version}-{key[:32]}"

    def record_of(self, manifest: Manifest) -> str:
        """Name of the record of a manifest's artifact."""
        return self.record_name(manifest.artifact.stage, manifest.version, manifest.artifact.key)

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest under `key`, or None. Raises UserError for one that a newer version wrote."""
        manifest = read_manifest(self.directory(stage, key) / "manifest.json")
        return manifest if manifest is not None and manifest.artifact.key == key else None

    def find(self, stage: str, key: str, *, deep: bool = False) -> Artifact | None:
        """The artifact under `key` if it is intact (see `problem`), otherwise None."""
        manifest = self.manifest(stage, key)
        if manifest is None or self.problem(manifest.artifact, deep=deep):
            return None
        return manifest.artifact

    def problem(self, artifact: Artifact, *, deep: bool = False) -> str | None:
        """What is wrong with the artifact, or None when every file is as it was committed.

        Files are hashed again where their size or time has changed; all of them if `deep`.
        """
        manifest = self.manifest(artifact.stage, artifact.key)
        if manifest is None:
            damaged = (self.directory(artifact.stage, artifact.key) / "manifest.json").exists()
            return f"{artifact.name} is missing{': its manifest.json is damaged' if damaged else ''}"
        if manifest.artifact.content != artifact.content:
            return f"{artifact.name} holds other content than was recorded"
        found = difference(self._payload(artifact), manifest.files, deep=deep)
        return found and f"{artifact.name}/{found}"

    def extras(self, manifest: Manifest) -> list[str]:
        """Paths in the store of files that are in the artifact's payload and do not belong to it. They do no harm."""
        payload = self._payload(manifest.artifact)
        found = extras(payload, manifest.files) if payload.is_dir() else []
        return [(payload / name).relative_to(self.root).as_posix() for name in found]

    def manifests(self) -> Iterator[Manifest]:
        """All readable manifests in the store, sorted by stage and key."""
        for folder in self._folders():
            manifest = None if forbidden(folder) else read_manifest(folder / "manifest.json")
            if manifest is not None and manifest.artifact.key.startswith(folder.name):
                yield manifest

    def search(self, prefix: str, *, stage: str | None = None) -> Manifest:
        """The manifest of the artifact whose key starts with `prefix`, which has six digits or more.

        Raises UserError unless there is exactly one.
        """
        if len(prefix) < 6:
            raise UserError(f"{prefix!r} is too short: give six or more digits of the key")
        found = [
            manifest
            for manifest in self.manifests()
            if manifest.artifact.key.startswith(prefix) and stage in (None, manifest.artifact.stage)
        ]
        if len(found) != 1:
            what = f"{len(found)} keys start" if found else "no key starts"
            where = f" among the artifacts of stage {stage}" if stage else ""
            raise UserError(f"{what} with {prefix}{where}: `sublim store ls` lists them")
        return found[0]

    def unreadable(self) -> Iterator[Path]:
        """Folders of artifacts whose manifest is missing or damaged. They count as absent."""
        for folder in self._folders():
            if not forbidden(folder) and read_manifest(folder / "manifest.json") is None:
                yield folder

    def unreadable_here(self) -> Iterator[Path]:
        """Folders of artifacts whose manifest this user lacks the permission to read."""
        yield from filter(forbidden, self._folders())

    def lineage(self, artifact: Artifact) -> dict[str, Manifest]:
        """The manifests of the artifact and of everything that it was made from, by `Artifact.name`."""
        found: dict[str, Manifest] = {}
        waiting = [artifact]
        while waiting:
            item = waiting.pop()
            manifest = self.manifest(item.stage, item.key)
            if manifest is not None and item.name not in found:
                found[item.name] = manifest
                waiting += input_artifacts(manifest.inputs)
        return found

    def _folders(self) -> list[Path]:
        """The folders of artifacts, sorted; other folders are ignored."""
        found = (path for path in self.root.glob("*/*") if _FOLDER.fullmatch(path.name))
        return sorted(path for path in found if path.parent.name not in RESERVED and path.is_dir())

    def _payload(self, artifact: Artifact) -> Path:
        return self.directory(artifact.stage, artifact.key) / "payload"
