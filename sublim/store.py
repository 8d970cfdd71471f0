"""The store: finished artifacts under their keys, committed by one rename and verified before they are believed.

A store in a bucket is a folder too (`sublim.shared_store`), which overrides the five methods that speak of others.
"""

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE
from typing import Any

from sublim.digest import digest_file, digest_files, list_files
from sublim.errors import UserError
from sublim.killpoints import kill_point
from sublim.large_files import digest_each
from sublim.locks import locked
from sublim.manifest import FORMAT, Artifact, FileEntry, Manifest, Provenance, input_artifacts
from sublim.store_memory import check_mounted, note

RESERVED = ("records", "locks", "scratch", "drafts", "runs", "studies")
_hashed: dict[tuple[Path, int, int], str] = {}  # per process: a file is hashed again only when it changed


class Store:
    """A folder of artifacts: `<stage>/<key[:12]>/{payload/, manifest.json}`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def address(self) -> str:
        """What SUBLIM_STORE says to mean this store."""
        return str(self.root)

    def ready(self) -> None:
        """Called when a run starts: raises UserError when the store could not keep what the run makes."""

    @contextmanager
    def claimed(
        self, stage: str, key: str, version: int, *, deep: bool, tell: Callable[[str], None]
    ) -> Generator[Artifact | None]:
        """The right to build `key`, among all machines that share the store; gives what another has made already.

        To be entered with the key's file lock held. In a folder that lock says it all.
        """
        yield None

    def share(self, path: Path) -> None:
        """Lets the others see a small file under the root, or all those of a folder."""

    def refresh(self, pattern: str) -> None:
        """Brings the files that others shared, whose paths below the root match `pattern`."""

    def create(self, *, anew: bool = False) -> "Store":
        """Makes the folder and its marker; refuses one of a newer version or, unless `anew`, not mounted."""
        marker = self.root / "store.json"
        try:
            if not marker.exists():
                if not anew:
                    check_mounted(self.root)
                self.root.mkdir(parents=True, exist_ok=True)
                write_synced(marker, json.dumps({"format": FORMAT}))
            note(self.root)
            found = int(json.loads(marker.read_text())["format"])
        except OSError as error:
            raise UserError(f"store {self.root} cannot be reached ({error.strerror}): check SUBLIM_STORE") from error
        except (ValueError, KeyError, TypeError) as error:
            hint = f'if this is the store, write {{"format": {FORMAT}}} into it'
            raise UserError(f"{marker} is damaged: {hint}") from error
        if found > FORMAT:
            raise UserError(f"the store {self.root} has format {found}, this version reads {FORMAT}: update sublim")
        return self

    def directory(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:12]

    def payload(self, artifact: Artifact) -> Path:
        """Where the artifact's files lie; they do when this returns."""
        return self._payload(artifact)

    def lock_path(self, record: str) -> Path:
        return self.root / "locks" / f"{record}.lock"

    def scratch(self, stage: str, key: str) -> Path:
        """A folder that survives a crash of this very stage and is removed when it commits."""
        path = self.root / "scratch" / stage / key[:12]
        path.mkdir(parents=True, exist_ok=True)
        return path

    def clear_scratch(self, stage: str, key: str) -> None:
        shutil.rmtree(self.root / "scratch" / stage / key[:12], ignore_errors=True)

    @contextmanager
    def draft(self, stage: str, key: str) -> Generator[Path]:
        """An empty folder to write an artifact in; removed unless it was committed."""
        draft = self._draft_path(f"{stage}-{key[:12]}")
        try:
            (draft / "payload").mkdir(parents=True)
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def commit(
        self,
        draft: Path,
        *,
        stage: str,
        key: str,
        version: int,
        config: dict[str, Any],
        inputs: dict[str, Any],
        notes: dict[str, Any],
        provenance: Provenance,
    ) -> Artifact:
        """Makes the draft the artifact under `key`: hashed, synced, manifest last, then one rename."""
        files = _entries(draft / "payload")
        content = digest_files({path: entry.sha256 for path, entry in files.items()})
        artifact = Artifact(content=content, stage=stage, key=key)
        manifest = Manifest(
            artifact=artifact,
            version=version,
            config=config,
            inputs=inputs,
            files=files,
            notes=notes,
            provenance=provenance,
        )
        write_synced(draft / "manifest.json", manifest.model_dump_json(indent=1))
        for directory in [*(path for path in draft.rglob("*") if path.is_dir()), draft]:
            _sync(directory)
        target = self.directory(stage, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        kill_point("before-rename")
        if target.exists():  # a damaged artifact makes way; its name is free for a moment, never half filled
            self._discard(target)
        draft.rename(target)
        _sync(target.parent)
        kill_point("after-rename")
        self.clear_scratch(stage, key)
        return self._hand_over(manifest)

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest under `key`, or None when there is none. Raises UserError for one of a newer version."""
        manifest = _read_manifest(self.directory(stage, key) / "manifest.json")
        return manifest if manifest is not None and manifest.artifact.key == key else None

    def find(self, stage: str, key: str, *, deep: bool = False) -> Artifact | None:
        """The intact artifact under `key`, or None."""
        manifest = self.manifest(stage, key)
        if manifest is None or self.problem(manifest.artifact, deep=deep):
            return None
        return manifest.artifact

    def problem(self, artifact: Artifact, *, deep: bool = False) -> str | None:
        """Why the artifact cannot be believed, or None when every file is what was committed.

        A file whose size and time are as noted is taken as unchanged unless `deep`; any other is hashed again.
        """
        manifest = self.manifest(artifact.stage, artifact.key)
        name = f"{artifact.stage}/{artifact.key[:12]}"
        if manifest is None:
            return f"{name} is missing"
        if manifest.artifact.content != artifact.content:
            return f"{name} holds other content than was recorded"
        payload = self._payload(artifact)
        try:
            present = list_files(payload)
        except (FileNotFoundError, NotADirectoryError, TypeError) as error:  # any other is the store's, never a miss
            return f"{name} is damaged: {error}"
        for path in present:
            if path not in manifest.files:
                return f"{name}/{path} is not of its making"
        for path, entry in manifest.files.items():
            if path not in present:
                return f"{name}/{path} is missing"
            stat = (payload / path).stat()
            if stat.st_size != entry.size:
                return f"{name}/{path} has {stat.st_size} bytes instead of {entry.size}"
            unchanged = stat.st_mtime_ns == entry.mtime_ns and not deep
            if not unchanged and _sha256(payload / path, deep=deep) != entry.sha256:
                return f"{name}/{path} has changed since it was written"
        return None

    def manifests(self) -> Iterator[Manifest]:
        """Every readable manifest in the store, by stage and key."""
        for path in sorted(self.root.glob("*/*/manifest.json")):
            if path.parent.parent.name not in RESERVED:
                manifest = _read_manifest(path)
                if manifest is not None and manifest.artifact.key.startswith(path.parent.name):
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
        """Folders whose manifest is missing or damaged: nothing in them is believed."""
        for folder in sorted(path for path in self.root.glob("*/*") if path.parent.name not in RESERVED):
            if _read_manifest(folder / "manifest.json") is None:
                yield folder

    def lineage(self, artifact: Artifact) -> dict[str, Manifest]:
        """The artifact's manifest and those of everything it was made from, by `stage/key[:12]`."""
        found: dict[str, Manifest] = {}
        waiting = [artifact]
        while waiting:
            item = waiting.pop()
            name = f"{item.stage}/{item.key[:12]}"
            manifest = self.manifest(item.stage, item.key)
            if manifest is not None and name not in found:
                found[name] = manifest
                waiting += input_artifacts(manifest.inputs)
        return found

    def record_name(self, stage: str, version: int, key: str) -> str:
        """Name of Prefect's record (and of the lock) for a key."""
        return f"{stage}-v{version}-{key[:32]}"

    def forget(self, manifest: Manifest) -> None:
        """Removes an artifact and its record, under the lock that a run of the same stage would hold."""
        artifact = manifest.artifact
        record = self.record_name(artifact.stage, manifest.version, artifact.key)
        with locked(self.lock_path(record)):
            self._forget_elsewhere(manifest)
            (self.root / "records" / record).unlink(missing_ok=True)
            self._discard(self.directory(artifact.stage, artifact.key))
            self.clear_scratch(artifact.stage, artifact.key)

    def _payload(self, artifact: Artifact) -> Path:
        return self.directory(artifact.stage, artifact.key) / "payload"

    def _hand_over(self, manifest: Manifest) -> Artifact:
        """What counts for all who share the store, once `manifest` is committed here."""
        return manifest.artifact

    def _forget_elsewhere(self, manifest: Manifest) -> None:
        """Removes what lies outside this folder."""

    def _draft_path(self, name: str) -> Path:
        # Not made by tempfile, whose folders only their owner can read: a store may be shared.
        return self.root / "drafts" / f"{name}-{token_hex(4)}"

    def _discard(self, directory: Path) -> None:
        if directory.exists():
            aside = self._draft_path("discarded")
            aside.parent.mkdir(parents=True, exist_ok=True)
            directory.rename(aside)
            shutil.rmtree(aside)


def open_store(address: str | None = None, *, anew: bool = False) -> Store:
    """The store at `address`, or at SUBLIM_STORE, or in `results/`; `anew` also where one was and is gone."""
    where = address or os.environ.get("SUBLIM_STORE") or "results"
    if where.startswith("s3://"):
        from sublim.shared_store import connected  # boto3 takes half a second to import

        return connected(where, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
    if "://" in where:
        kind = where.partition("://")[0]
        raise UserError(f"SUBLIM_STORE is a folder or s3://bucket/prefix; {kind}:// is not supported")
    return Store(Path(where).expanduser()).create(anew=anew)


def write_synced(path: Path, text: str) -> None:
    """Writes a small file so that it is whole or absent, also after a power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None when there is none or it was damaged on disk, which is as good as absent."""
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_manifest(text: bytes, where: str) -> Manifest | None:
    """The manifest that `text` is, or None when it is damaged. Raises UserError for one of a newer version."""
    try:
        if (fields := json.loads(text))["format"] > FORMAT:
            raise UserError(f"{where} was written by a newer version of sublim: update sublim")
        manifest = Manifest.model_validate(fields)
    except (ValueError, KeyError, TypeError):
        return None
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    return manifest if digest_files(hashes) == manifest.artifact.content else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _let_read(path: Path, folder: Path) -> None:
    """Whoever may read the folder may read the file: safetensors makes files for their owner alone."""
    now, wanted = path.stat(), folder.stat().st_mode & 0o666
    if now.st_nlink == 1 and wanted & ~now.st_mode:  # a link's other name is another's business
        path.chmod(S_IMODE(now.st_mode) | wanted)


def _entries(payload: Path) -> dict[str, FileEntry]:
    """Every file of a payload as it is, once it is on the disk."""
    names = list_files(payload)
    paths = [payload / name for name in names]
    for path in paths:
        _let_read(path, payload)
        _sync(path)
    stats = [path.stat() for path in paths]
    return {
        name: FileEntry(sha256=sha256, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
        for name, sha256, stat in zip(names, digest_each(paths), stats, strict=True)
    }


def _sha256(path: Path, *, deep: bool) -> str:
    stat = path.stat()
    memo = (path, stat.st_size, stat.st_mtime_ns)
    if deep or memo not in _hashed:
        _hashed[memo] = digest_file(path)
    return _hashed[memo]
