"""The store as a folder: an artifact is written to a draft, and one rename commits it under its key.

A store in a bucket (`sublim.store.bucket`) keeps such a folder as its cache. It overrides the methods that concern
other machines.
"""

import errno
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Self

from sublim.core.digest import digest_files
from sublim.core.errors import UserError, file_fault, file_faults_told
from sublim.core.kill_points import kill_point
from sublim.files.group_rights import share_with_group
from sublim.files.locks import locked
from sublim.files.syncing import sync
from sublim.files.whole_files import write_whole
from sublim.store.layout import WRITTEN
from sublim.store.manifest import FORMAT, Artifact, Manifest
from sublim.store.mounts import check_mounted, remember_store
from sublim.store.payloads import record_files
from sublim.store.probe import check_renaming, check_writable, try_store
from sublim.store.reading import StoreReader


class Store(StoreReader):
    """A store in a folder. Runs on several machines may use it together over a shared file system."""

    def ready(self) -> None:
        """Called when a run starts. Raises UserError when the store could not keep the results of the run."""
        self.try_out()

    def try_out(self) -> None:
        """Raises UserError when this user cannot write to the store, or its file system lacks what the store needs."""
        with file_faults_told(self.root):
            folders = [self.folder(self.root / name) for name in WRITTEN]
        try_store(self.root, (self.root, *folders))

    @contextmanager
    def claimed(
        self, stage: str, key: str, version: int, *, deep: bool, tell: Callable[[str], None]
    ) -> Generator[Artifact | None]:
        """Holds the right to build `key` among all machines that share the store.

        Gives the artifact if another machine has made it already, otherwise None. The caller holds the file lock of
        the key, which is enough in a folder. `tell` is called with a message if there is a wait.
        """
        yield None

    def share(self, path: Path) -> None:
        """Makes a small file below the root, or all files of a folder, visible to other machines."""

    def refresh(self, pattern: str) -> None:
        """Fetches the files that other machines shared and whose paths below the root match `pattern`."""

    def create(self, *, anew: bool = False) -> Self:
        """Makes the folder and its marker store.json where they are missing.

        Raises UserError for a store of a newer version and, unless `anew`, for one that seems not to be mounted.
        """
        marker = self.root / "store.json"
        try:
            if not marker.exists():
                if not anew:
                    check_mounted(self.root)
                self.root.mkdir(parents=True, exist_ok=True)
                write_whole(marker, json.dumps({"format": FORMAT}))
            remember_store(self.root)
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
        """Makes the folder `path` below the root where it is missing, shared with the group as the root is."""
        if not path.is_dir():
            self.folder(path.parent)
            path.mkdir(exist_ok=True)
            share_with_group(path, self.root)
        return path

    def scratch(self, stage: str, key: str) -> Path:
        """The folder in which a stage keeps intermediate results. It survives a crash and is removed at the commit."""
        path = self.folder(self.root / "scratch" / stage / key[:12])
        check_writable(path)  # a run of another user may have left it
        return path

    def clear_scratch(self, stage: str, key: str) -> None:
        """Removes the intermediate results of a stage."""
        shutil.rmtree(self.root / "scratch" / stage / key[:12], ignore_errors=True)

    @contextmanager
    def draft(self, stage: str, key: str) -> Generator[Path]:
        """Gives an empty folder from which an artifact can be committed; removes it unless that was done."""
        draft = self._draft_path(f"{stage}-{key[:12]}")
        try:
            self.folder(draft)
            if (self.root / stage).exists():
                check_renaming(draft, self.root / stage)
            self.folder(draft / "payload")
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def commit(self, draft: Path, *, stage: str, key: str, **record: Any) -> Artifact:
        """Makes the draft the artifact under `key`: syncs and hashes the files, writes the manifest, renames.

        `record`: the other fields of the manifest. Replaces a damaged artifact. Raises TypeError for a link in the
        payload.
        """
        files = record_files(draft / "payload")
        content = digest_files({path: entry.sha256 for path, entry in files.items()})
        artifact = Artifact(content=content, stage=stage, key=key)
        manifest = Manifest(artifact=artifact, files=files, **record)
        write_whole(draft / "manifest.json", manifest.model_dump_json(indent=1))
        for directory in [*(path for path in draft.rglob("*") if path.is_dir()), draft]:
            share_with_group(directory, self.root)
            sync(directory)
        target = self.directory(stage, key)
        self.folder(target.parent)
        kill_point("before-rename")
        if target.exists():  # a damaged artifact; for a moment there is none under this name
            self.discard(target)
        draft.rename(target)
        sync(target.parent)
        kill_point("after-rename")
        self.clear_scratch(stage, key)
        return self._hand_over(manifest)

    def forget(self, manifest: Manifest) -> None:
        """Removes an artifact and its record, while holding the lock that a run of the same stage would hold."""
        artifact = manifest.artifact
        record = self.record_of(manifest)
        with locked(self.lock_path(record)):
            self._forget_elsewhere(manifest)
            (self.root / "records" / record).unlink(missing_ok=True)
            self.discard(self.directory(artifact.stage, artifact.key))
            self.clear_scratch(artifact.stage, artifact.key)

    def _hand_over(self, manifest: Manifest) -> Artifact:
        """The artifact that is valid for all machines, once `manifest` is committed here."""
        return manifest.artifact

    def _forget_elsewhere(self, manifest: Manifest) -> None:
        """Removes what is outside this folder."""

    def _draft_path(self, name: str) -> Path:
        # Not from tempfile, whose folders can be read by their owner alone: a store may be shared.
        return self.root / "drafts" / f"{name}-{token_hex(4)}"

    def discard(self, directory: Path) -> None:
        """Removes a folder of the store, if it exists: for others at once, by a rename."""
        if directory.exists():
            aside = self._draft_path("discarded")
            self.folder(aside.parent)
            try:
                directory.rename(aside)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # overlayfs does not rename folders that came with a container's image
                (directory / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(directory)
            shutil.rmtree(aside, ignore_errors=True)  # files of another user may stay until that user runs `store gc`


def _why(root: Path, error: OSError) -> str:
    """Why a store cannot be reached, and what to do about it."""
    if isinstance(error, FileExistsError):
        if root.is_symlink():
            return f"it is a link to {root.readlink()}, which is not there: mount or make that, or set SUBLIM_STORE"
        return "it is a file: set SUBLIM_STORE to a folder"
    return f"{file_fault(error) or error.strerror}: check SUBLIM_STORE"
