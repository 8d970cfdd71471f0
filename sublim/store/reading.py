"""What a store holds: artifacts found under their keys, and verified before they are believed. Changes nothing."""

import re
from collections.abc import Iterator
from pathlib import Path

from sublim.core.errors import UserError
from sublim.store.layout import RESERVED
from sublim.store.manifest import Artifact, Manifest, input_artifacts
from sublim.store.manifest_files import forbidden, read_manifest
from sublim.store.payloads import difference, extras

_FOLDER = re.compile("[0-9a-f]{12}")
"""Name of an artifact's folder."""


class StoreReader:
    """A folder of artifacts: `<stage>/<key[:12]>/{payload/, manifest.json}`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def address(self) -> str:
        """What SUBLIM_STORE says to mean this store."""
        return str(self.root)

    def directory(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:12]

    def payload(self, artifact: Artifact) -> Path:
        """Where the artifact's files lie; they do when this returns."""
        return self._payload(artifact)

    def lock_path(self, record: str) -> Path:
        return self.root / "locks" / f"{record}.lock"

    def record_name(self, stage: str, version: int, key: str) -> str:
        """Name of Prefect's record (and of the lock) for a key."""
        return f"{stage}-v{version}-{key[:32]}"

    def record_of(self, manifest: Manifest) -> str:
        """Name of the record of a manifest's artifact."""
        return self.record_name(manifest.artifact.stage, manifest.version, manifest.artifact.key)

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest under `key`, or None when there is none. Raises UserError for one of a newer version."""
        manifest = read_manifest(self.directory(stage, key) / "manifest.json")
        return manifest if manifest is not None and manifest.artifact.key == key else None

    def find(self, stage: str, key: str, *, deep: bool = False) -> Artifact | None:
        """The intact artifact under `key`, or None."""
        manifest = self.manifest(stage, key)
        if manifest is None or self.problem(manifest.artifact, deep=deep):
            return None
        return manifest.artifact

    def problem(self, artifact: Artifact, *, deep: bool = False) -> str | None:
        """Why the artifact cannot be believed, or None when every file is what was committed (see `difference`)."""
        manifest = self.manifest(artifact.stage, artifact.key)
        if manifest is None:
            damaged = (self.directory(artifact.stage, artifact.key) / "manifest.json").exists()
            return f"{artifact.name} is missing{': its manifest.json is damaged' if damaged else ''}"
        if manifest.artifact.content != artifact.content:
            return f"{artifact.name} holds other content than was recorded"
        found = difference(self._payload(artifact), manifest.files, deep=deep)
        return found and f"{artifact.name}/{found}"

    def extras(self, manifest: Manifest) -> list[str]:
        """What lies among an artifact's files and is none of them, by its path in the store: no damage."""
        payload = self._payload(manifest.artifact)
        found = extras(payload, manifest.files) if payload.is_dir() else []
        return [(payload / name).relative_to(self.root).as_posix() for name in found]

    def manifests(self) -> Iterator[Manifest]:
        """Every readable manifest in the store, by stage and key."""
        for folder in self._folders():
            manifest = None if forbidden(folder) else read_manifest(folder / "manifest.json")
            if manifest is not None and manifest.artifact.key.startswith(folder.name):
                yield manifest

    def search(self, prefix: str, *, stage: str | None = None) -> Manifest:
        """The artifact whose key starts with `prefix` (six digits or more); UserError unless there is just one."""
        if len(prefix) < 6:
            raise UserError(f"{prefix!r} is too short: give six or more digits of the key")
        found = [
            manifest
            for manifest in self.manifests()
            if manifest.artifact.key.startswith(prefix) and stage in (None, manifest.artifact.stage)
        ]
        if len(found) != 1:
            what = f"{len(found)} artifacts have keys" if found else "no artifact has a key"
            where = f" of stage {stage}" if stage else ""
            raise UserError(f"{what}{where} that start with {prefix}: `sublim store ls` lists them")
        return found[0]

    def unreadable(self) -> Iterator[Path]:
        """Artifacts' folders whose manifest is missing or damaged: nothing in them is believed."""
        for folder in self._folders():
            if not forbidden(folder) and read_manifest(folder / "manifest.json") is None:
                yield folder

    def unreadable_here(self) -> Iterator[Path]:
        """Artifacts' folders whose manifest this user may not read."""
        yield from filter(forbidden, self._folders())

    def lineage(self, artifact: Artifact) -> dict[str, Manifest]:
        """The artifact's manifest and those of everything it was made from, by `stage/key[:12]`."""
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
        """The artifacts' folders, sorted; whatever else lies in the store is somebody else's."""
        found = (path for path in self.root.glob("*/*") if _FOLDER.fullmatch(path.name))
        return sorted(path for path in found if path.parent.name not in RESERVED and path.is_dir())

    def _payload(self, artifact: Artifact) -> Path:
        return self.directory(artifact.stage, artifact.key) / "payload"
