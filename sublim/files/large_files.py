"""Model weights are gigabytes: hashing several files at a time, and copies that cost no more than they must."""

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sublim.core.digest import digest_file

THREADS = 8
"""One core hashes or copies 1 to 2 GB a second, and a disk reads and writes more."""


def digest_each(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file's bytes, in the order of `paths`."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(digest_file, paths))


def copy_each(source: Path, names: Iterable[str], out: Path) -> None:
    """Copies those files of `source`. File systems that can (XFS, btrfs) keep their bytes once, until one changes."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: _copy(source / name, out / name), names))


def link_each(source: Path, names: Iterable[str], out: Path) -> None:
    """Gives those files a second name in `out`: only for files that nobody writes to again.

    What lies on another file system, or on one without such names, is copied.
    """
    unlinked: list[str] = []
    for name in names:
        try:
            (out / name).hardlink_to((source / name).resolve())
        except OSError:
            unlinked.append(name)
    copy_each(source, unlinked, out)


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as here, target.open("wb") as there:
            while os.copy_file_range(here.fileno(), there.fileno(), 2**30):
                pass
    except (AttributeError, OSError):  # no such call on this system, or not between these two file systems
        shutil.copyfile(source, target)
