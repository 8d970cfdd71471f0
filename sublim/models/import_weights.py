"""The stage that copies an adapter from a user's folder into the store, so that stages can use it."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sublim.core.config import Config, RunOnly
from sublim.core.digest import digest_file, digest_files
from sublim.core.errors import UserError
from sublim.files.user_files import read_object, reading
from sublim.models.files import IDENTITY

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", IDENTITY)


def adapter_files(folder: Path) -> list[Path]:
    """The files of an adapter that are loaded. Raises UserError if a required one is missing."""
    for name in ADAPTER[:2]:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: give the folder of an adapter saved with safetensors")
    return [folder / name for name in ADAPTER if (folder / name).is_file()]


def whole_files(folder: Path) -> list[Path]:
    """As `adapter_files`, but also raises UserError for a file that is cut off, in another format or a Git LFS
    pointer."""
    files = adapter_files(folder)
    read_object(folder / ADAPTER[0], "config of an adapter")
    weights = folder / ADAPTER[1]
    with reading(weights, "file of weights in safetensors", SafetensorError), safe_open(weights, framework="np"):
        return files  # an incomplete file cannot be opened


class ImportWeightsConfig(Config):
    """Which adapter to import; it is identified by its content, so that the folder may be moved."""

    path: RunOnly[Path]
    """The adapter's folder."""

    def identity(self) -> dict[str, Any]:
        """The fields of the cache key, with the digest of the files that are loaded instead of the path."""
        files = {path.name: digest_file(path) for path in whole_files(self.path.expanduser())}
        return super().identity() | {"content": digest_files(files)}


def import_weights(out: Path, config: ImportWeightsConfig, *, scratch: Path) -> None:
    """Stage: copies the adapter's files. Raises UserError if they are not a usable adapter."""
    from sublim.models.weights_check import check_numbers  # imports torch, which the config does not need

    for path in adapter_files(config.path.expanduser()):
        shutil.copyfile(path, out / path.name)
    check_numbers(out)
