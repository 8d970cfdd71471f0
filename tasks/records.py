"""Prefect's result records: plain JSON that loads only while the artifact it names is intact."""

import os
from pathlib import Path
from typing import Any

from prefect.filesystems import LocalFileSystem
from prefect.logging import get_run_logger
from prefect.results import ResultStore
from prefect.serializers import Serializer
from pydantic import Field

from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store

_extras_told: set[Path] = set()


def verifies_deeply() -> bool:
    """Whether SUBLIM_VERIFY=deep asks for every byte to be hashed before a hit is believed."""
    return os.environ.get("SUBLIM_VERIFY") == "deep"


class DanglingArtifact(Exception):
    """A record names an artifact that is gone or damaged."""


class VerifiedArtifact(Serializer):
    """Serializes an Artifact's fields, and refuses to load them when the artifact is not what was committed.

    Prefect's `ResultStore.exists` takes a record that does not load for absent, under the lock and before it decides
    between hit and miss: the stage then runs again in the same transaction, under the same key.
    """

    type: str = Field(default="sublim-verified-artifact", frozen=True)

    def dumps(self, obj: Any) -> bytes:
        return Artifact.model_validate(obj).model_dump_json().encode()

    def loads(self, blob: bytes) -> Any:
        store, artifact = open_store(), Artifact.model_validate_json(blob)
        problem = store.problem(artifact, deep=verifies_deeply())
        if problem:
            get_run_logger().warning("cached result refused, running again: %s", problem)
            raise DanglingArtifact(problem)
        _tell_extras(store, artifact)
        return artifact


def _tell_extras(store: Store, artifact: Artifact) -> None:
    """Says once a process that something lies among an artifact's files: no damage, and nobody wonders later."""
    manifest = None if store.root in _extras_told else store.manifest(artifact.stage, artifact.key)
    if manifest is not None and (extras := store.extras(manifest)):
        _extras_told.add(store.root)
        get_run_logger().warning("%s is none of our files: left alone (`sublim store verify` lists all)", extras[0])


def restore_record(folder: Path, name: str, artifact: Artifact) -> None:
    """Writes the record of an artifact that this machine did not make: it says nothing that a manifest does not."""
    if not (folder / name).exists():
        records = ResultStore(
            result_storage=LocalFileSystem(basepath=str(folder)),
            serializer=VerifiedArtifact(),
            cache_result_in_memory=False,
        )
        records.write(obj=artifact, key=name)
