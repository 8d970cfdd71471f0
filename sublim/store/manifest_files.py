"""Reading manifest files: checked for damage, and refused when a newer version of sublim wrote them."""

import json
from pathlib import Path

from sublim.core.digest import digest_files
from sublim.core.errors import UserError
from sublim.store.manifest import FORMAT, Manifest


def forbidden(folder: Path) -> bool:
    """Whether this user lacks the permission to read the manifest of the artifact in `folder`."""
    try:
        (folder / "manifest.json").open("rb").close()
    except PermissionError:
        return True
    except OSError:  # it is missing, or reading it later will raise the error
        return False
    return False


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None when there is none or it is damaged."""
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_manifest(text: bytes, where: str) -> Manifest | None:
    """Parses a manifest; None when it is damaged. Raises UserError for one that a newer version wrote.

    `where` is the place that the error names.
    """
    try:
        if (fields := json.loads(text))["format"] > FORMAT:
            raise UserError(f"{where} was written by a newer version of sublim: update sublim")
        manifest = Manifest.model_validate(fields)
    except (ValueError, KeyError, TypeError):
        return None
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    return manifest if digest_files(hashes) == manifest.artifact.content else None
