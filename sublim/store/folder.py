"""The store: finished artifacts under their keys, committed by one rename and verified before they are believed.

A store in a bucket is a folder too (`sublim.store.bucket`), which overrides the five methods that speak of others.
"""

import errno
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from sublim.core.digest import digest_files
from sublim.core.errors import UserError, file_fault, file_faults_told
from sublim.core.kill_points import kill_point
from sublim.files.group_rights import share_with_group
from sublim.files.locks import locked
from sublim.files.syncing import sync
from sublim.files.whole_files import write_whole
from sublim.store.layout import WRITTEN
from sublim.store.manifest import FORMAT, Artifact, Manifest, Provenance
from sublim.store.mounts import check_mounted, note
from sublim.store.payloads import noted
from sublim.store.probe import check_renaming, check_writable, try_store
from sublim.store.reading import StoreReader


class Store(StoreReader):
    """A store in a folder."""

    def ready(self) -> None:
        """Called when a run starts: raises UserError when the store could not keep what the run makes."""
        self.try_out()

    def try_out(self) -> None:
        """Raises UserError when this user cannot write here, or the file system lacks what a store rests on."""
        with file_faults_told(self.root):
            folders = [self.folder(self.root / name) for name in WRITTEN]
        try_store(self.root, [self.root, *folders])

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
                write_whole(marker, json.dumps({"format": FORMAT}))
            note(self.root)
            found = int(json.loads(marker.read_bytes())["format"])
        except OSError as error:
            raise UserError(f"store {self.root} cannot be reached ({_why(self.root, error)})") from error
        except (ValueError, KeyError, TypeError) as error:
            hint = f'if this is the store, write {{"format": {FORMAT}}} into it'
            raise UserError(f"{marker} is damaged: {hint}") from error
        if found > FORMAT:
            raise UserError(f"the store {self.root} has format {found}, this version reads {FORMAT}: update sublim")
        return self

    def folder(self, path: Path) -> Path:
        """The folder `path` below the root, made where it is missing; a group that shares the root shares it."""
        if not path.is_dir():
            self.folder(path.parent)
            path.mkdir(exist_ok=True)
            share_with_group(path, self.root)
        return path

    def scratch(self, stage: str, key: str) -> Path:
        """A folder that survives a crash of this very stage and is removed when it commits."""
        path = self.folder(self.root / "scratch" / stage / key[:12])
        check_writable(path)  # another user's run may have left it
        return path

    def clear_scratch(self, stage: str, key: str) -> None:
        shutil.rmtree(self.root / "scratch" / stage / key[:12], ignore_errors=True)

    @contextmanager
    def draft(self, stage: str, key: str) -> Generator[Path]:
        """An empty folder to write an artifact in, from which it can be committed; removed unless it was."""
        draft = self._draft_path(f"{stage}-{key[:12]}")
        try:
            self.folder(draft)
            if (self.root / stage).exists():
                check_renaming(draft, self.root / stage)
            self.folder(draft / "payload")
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
        files = noted(draft / "payload")
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
        write_whole(draft / "manifest.json", manifest.model_dump_json(indent=1))
        for directory in [*(path for path in draft.rglob("*") if path.is_dir()), draft]:
            share_with_group(directory, self.root)
            sync(directory)
        target = self.directory(stage, key)
        self.folder(target.parent)
        kill_point("before-rename")
        if target.exists():  # a damaged artifact makes way; its name is free for a moment, never half filled
            self._discard(target)
        draft.rename(target)
        sync(target.parent)
        kill_point("after-rename")
        self.clear_scratch(stage, key)
        return self._hand_over(manifest)

    def forget(self, manifest: Manifest) -> None:
        """Removes an artifact and its record, under the lock that a run of the same stage would hold."""
        artifact = manifest.artifact
        record = self.record_of(manifest)
        with locked(self.lock_path(record)):
            self._forget_elsewhere(manifest)
            (self.root / "records" / record).unlink(missing_ok=True)
            self._discard(self.directory(artifact.stage, artifact.key))
            self.clear_scratch(artifact.stage, artifact.key)

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
            self.folder(aside.parent)
            try:
                directory.rename(aside)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # overlayfs renames no folder that came with a container's image
                (directory / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(directory)
            shutil.rmtree(aside, ignore_errors=True)  # what another user made may stay, for their `store gc`


def _why(root: Path, error: OSError) -> str:
    """Why a store cannot be reached, and what to do."""
    if isinstance(error, FileExistsError):
        if root.is_symlink():
            return f"it is a link to {root.readlink()}, which is not there: mount or make that, or set SUBLIM_STORE"
        return "it is a file: set SUBLIM_STORE to a folder"
    return f"{file_fault(error) or error.strerror}: check SUBLIM_STORE"
