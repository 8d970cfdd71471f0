"""Hashing and copying large files, such as model weights: several at a time, without a copy where possible."""

import os
import shutil
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sublim.core.digest import digest_file

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = 8
"""One core hashes or copies 1 to 2 GB a second, which is less than a disk can read and write."""


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results of `work` on each item, in order, by several threads. An error cancels what has not begun."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def digest_each(folder: Path, names: Collection[str]) -> dict[str, str]:
    """SHA-256 of the bytes of each of the named files of `folder`, by its name."""
    return dict(zip(names, in_parallel(lambda name: digest_file(folder / name), names), strict=True))


def copy_each(source: Path, names: Iterable[str], out: Path) -> None:
    """Copies the named files of `source` to `out`.

    XFS and btrfs store the bytes of both copies once, until one of them changes.
    """
    in_parallel(lambda name: _copy(source / name, out / name), names)


def link_each(source: Path, names: Iterable[str], out: Path) -> None:
    """Makes hard links in `out` to the named files of `source`: only for files that nobody writes to again.

    Files on another file system, or on one without hard links, are copied.
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
    except (AttributeError, OSError):  # the system has no such call, or not between these two file systems
        shutil.copyfile(source, target)
