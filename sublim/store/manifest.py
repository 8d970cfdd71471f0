"""Manifests: what an artifact is, what it was made from, and how, where and when it was made."""

from typing import Any

from sublim.core.config import Config, RunOnly

FORMAT = 1


class Artifact(Config):
    """A finished stage's output. Two artifacts with equal `content` are the same, whichever recipe wrote them."""

    content: str
    """SHA-256 over the payload's relative paths and bytes."""
    stage: RunOnly[str]
    """Stage that wrote it."""
    key: RunOnly[str]
    """Key (64 hex digits) under which it lies in the store."""

    @property
    def name(self) -> str:
        """Its folder in the store, and its name in messages: the stage and the key's first 12 digits."""
        return f"{self.stage}/{self.key[:12]}"


class FileEntry(Config):
    """One payload file as it was when it was hashed."""

    sha256: str
    size: int
    """Bytes."""
    mtime_ns: int


class Provenance(Config):
    """How an artifact came to be; never part of a key or a payload."""

    commit: str | None
    """Commit of sublim's checkout, None outside one."""
    dirty: bool | None
    packages: dict[str, str]
    python: str
    host: str
    device: str
    started: str
    """UTC, ISO 8601."""
    seconds: float
    flow_run: str | None = None


class Manifest(Config):
    """The record beside a payload; written last, so its presence says that the payload is whole."""

    format: int = FORMAT
    artifact: Artifact
    version: int
    """The stage's version."""
    config: dict[str, Any]
    """The stage's configs, canonical (identity fields only)."""
    inputs: dict[str, Any]
    """Input artifacts by name: {content, stage, key}, a list or mapping of such, or null."""
    files: dict[str, FileEntry]
    notes: dict[str, Any]
    """What the stage reports of itself: rendered contexts, attention used, peak memory."""
    provenance: Provenance


def input_artifacts(inputs: dict[str, Any]) -> list[Artifact]:
    """The artifacts named in a manifest's `inputs`, in order."""
    found: list[Artifact] = []
    for value in inputs.values():
        match value:
            case {"content": str()}:
                found.append(Artifact.model_validate(value))
            case dict():
                found += input_artifacts(value)  # pyright: ignore[reportUnknownArgumentType]
            case list():
                found += [Artifact.model_validate(item) for item in value]
            case _:
                pass
    return found
