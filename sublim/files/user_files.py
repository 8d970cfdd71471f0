"""Files that users give. One that is missing, truncated or in another format is refused in one line that names it."""

import json
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sublim.core.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LOOKS = {
    "it looks like a zip archive or a PyTorch checkpoint": (b"pk\x03\x04",),
    "it is packed with gzip: unpack it": (b"\x1f\x8b",),
    "it looks like a Parquet table": (b"par1",),
    "it looks like a NumPy array": (b"\x93numpy",),
    "it looks like a pickle, which may run code": (b"\x80\x02", b"\x80\x04"),
    "it is UTF-16 text: save it as UTF-8": (b"\xff\xfe", b"\xfe\xff"),
    "it looks like a web page in place of a download": (b"<!", b"<html"),
}
"""The first bytes, in lower case, of files that are often given in place of the right one."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, which git leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def check_file(path: Path, what: str) -> None:
    """Raises UserError unless `path` is a file that can be opened and is not a Git LFS pointer."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the {what} itself")
    if not path.exists():
        raise UserError(f"{path}: there is no such file; give a {what}")
    try:
        if is_lfs_pointer(path):
            raise UserError(f"{path} is a Git LFS pointer in place of a {what}: run `git lfs pull` where it lies")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a {what} that you may read") from error


@contextmanager
def reading(path: Path, what: str, *errors: type[Exception]) -> Generator[None]:
    """Raises UserError in place of what goes wrong while `path` is read as `what`.

    Covers OSError, bad UTF-8, bad JSON, truncated compressed data, and the `errors` of the library that reads. The
    block should do nothing but read.
    """
    check_file(path, what)
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError, zlib.error, *errors) as error:
        raise UserError(
            f"{path} is not a {what}, or it is damaged ({_reason(path, error)}): give another, or fetch it again"
        ) from error


def read_text(path: Path, what: str) -> str:
    """The text of a user's UTF-8 file, without a byte order mark."""
    with reading(path, what):
        return path.read_text(encoding="utf-8-sig")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The object in a user's JSON file. Raises UserError for NaN, a name that occurs twice, and another type."""
    with reading(path, what):
        value = parse_json(read_text(path, what))
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a {what}: it should hold one JSON object, `{{...}}`")
    return cast(dict[str, Any], value)


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises JSONDecodeError, also for NaN, infinities and a name that occurs twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise json.JSONDecodeError(f"the name {twice!r} is there twice", text, 0)
        return found

    def refuse(constant: str) -> Any:
        raise json.JSONDecodeError(f"{constant} is no number of JSON", text, 0)

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        start = file.read(8).lower()
    if not start:
        return "it is empty"
    looks = (told for told, beginnings in LOOKS.items() if start.startswith(beginnings))
    return next(looks, " ".join(str(error).split())[:160])
