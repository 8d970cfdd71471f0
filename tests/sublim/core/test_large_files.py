"""Large files: many at a time, and copies that leave their source alone."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

from sublim.core.digest import digest_file
from sublim.files.large_files import copy_each, digest_each, link_each

NAMES = [f"part{i}" for i in range(20)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([i]) * (i * 100_000))
    return folder


def refused(*args: object) -> NoReturn:
    raise OSError("between these two file systems")


def test_digests_come_in_the_order_of_the_files(source: Path):
    assert list(digest_each(source, NAMES).items()) == [(name, digest_file(source / name)) for name in NAMES]
    assert digest_each(source, []) == {}


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_copy_has_the_bytes_and_its_own_life(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
):
    if not in_kernel:
        monkeypatch.setattr(os, "copy_file_range", refused)
    (tmp_path / "out").mkdir()
    copy_each(source, NAMES, tmp_path / "out")
    (source / NAMES[3]).write_bytes(b"changed")
    assert (tmp_path / "out" / NAMES[3]).read_bytes() == bytes([3]) * 300_000
    assert digest_file(tmp_path / "out" / NAMES[19]) == digest_file(source / NAMES[19])


def test_a_link_is_to_the_file_itself_and_a_copy_where_there_can_be_none(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in NAMES:
        (snapshot / name).symlink_to(source / name)  # as the hub's cache has it
    for out in (tmp_path / "linked", tmp_path / "copied"):
        out.mkdir()
    link_each(snapshot, NAMES, tmp_path / "linked")
    assert all((tmp_path / "linked" / name).samefile(source / name) for name in NAMES)
    assert not any((tmp_path / "linked" / name).is_symlink() for name in NAMES)
    monkeypatch.setattr(Path, "hardlink_to", refused)
    link_each(snapshot, NAMES, tmp_path / "copied")
    assert (tmp_path / "copied" / NAMES[2]).read_bytes() == bytes([2]) * 200_000
    assert (tmp_path / "copied" / NAMES[2]).stat().st_nlink == 1
