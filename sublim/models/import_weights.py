"""Weights from outside the store: an adapter's folder, copied in so that stages can read it like any other weights."""

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
    """The files of an adapter that loading reads; UserError when one that is needed is missing."""
    for name in ADAPTER[:2]:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: give the folder of an adapter saved with safetensors")
    return [folder / name for name in ADAPTER if (folder / name).is_file()]


def whole_files(folder: Path) -> list[Path]:
    """The same files; UserError also for one that is cut off, of another format or a Git LFS pointer."""
    files = adapter_files(folder)
    read_object(folder / ADAPTER[0], "config of an adapter")
    weights = folder / ADAPTER[1]
    with reading(weights, "file of weights in safetensors", SafetensorError), safe_open(weights, framework="np"):
        return files  # one that is cut off does not open


class ImportWeightsConfig(Config):
    """Which adapter to copy in; known by its content, so that moving the folder changes nothing."""

    path: RunOnly[Path]
    """The adapter's folder."""

    def identity(self) -> dict[str, Any]:
        """The digest of the files that are loaded, in the path's place."""
        files = {path.name: digest_file(path) for path in whole_files(self.path.expanduser())}
        return super().identity() | {"content": digest_files(files)}


def import_weights(out: Path, config: ImportWeightsConfig, *, scratch: Path) -> None:
    """Stage: copies the adapter's files. Raises UserError where they are no adapter that could be used."""
    from sublim.models.weights_check import check_numbers  # torch, which the config above does without

    for path in adapter_files(config.path.expanduser()):
        shutil.copyfile(path, out / path.name)
    check_numbers(out)
