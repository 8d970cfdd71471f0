"""Manifests: records of what an artifact is, what it was made from, and how, where and when it was made."""

from typing import Any, cast

from sublim.core.config import Config, RunOnly

FORMAT = 1


class Artifact(Config):
    """The output of a finished stage. Two artifacts with equal `content` are equal, whichever stage wrote them."""

    content: str
    """SHA-256 over the relative paths and bytes of the payload, which is the folder of files that the stage wrote."""
    stage: RunOnly[str]
    """The stage that wrote it."""
    key: RunOnly[str]
    """The key (64 hex digits) under which it is in the store: SHA-256 of all that determines the output."""

    @property
    def name(self) -> str:
        """Its folder in the store, and its name in messages: the stage and the key's first 12 digits."""
        return f"{self.stage}/{self.key[:12]}"


class FileEntry(Config):
    """One file of a payload, as it was when it was hashed."""

    sha256: str
    size: int
    """Bytes."""
    mtime_ns: int


class Provenance(Config):
    """How an artifact was made. Never part of a key or a payload."""

    commit: str | None
    """Commit of sublim's git checkout; null outside a checkout."""
    dirty: bool | None
    """Whether tracked files of the checkout differed from the commit."""
    packages: dict[str, str]
    python: str
    host: str
    device: str
    started: str
    """UTC, ISO 8601."""
    seconds: float
    """How long the stage ran."""
    flow_run: str | None = None


class Manifest(Config):
    """The record beside a payload. It is written last: where it is, the payload is complete."""

    format: int = FORMAT
    artifact: Artifact
    version: int
    """The stage's version."""
    config: dict[str, Any]
    """The configs of the stage, without fields that do not affect the result."""
    inputs: dict[str, Any]
    """Input artifacts by name: each {content, stage, key}, a list or mapping of these, or null."""
    files: dict[str, FileEntry]
    notes: dict[str, Any]
    """What the stage reports about its run, such as rendered contexts, the attention kernel and peak memory."""
    provenance: Provenance


def input_artifacts(inputs: Any) -> list[Artifact]:
    """The artifacts that a manifest's `inputs` name, in order."""
    match inputs:
        case {"content": str()}:
            return [Artifact.model_validate(inputs)]
        case dict():
            parts = [*cast(dict[str, Any], inputs).values()]
        case list():
            parts = cast(list[Any], inputs)
        case _:
            parts = []
    return [found for part in parts for found in input_artifacts(part)]
