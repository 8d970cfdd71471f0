"""Checks of the files in a model folder: complete, readable, one set of weights, and data types that can be trained."""

from collections.abc import Container, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from sublim.core.errors import UserError
from sublim.files.user_files import is_lfs_pointer
from sublim.models.files import INDEX, loaded_files, read_json, weight_files

PLAIN = {"F64", "F32", "F16", "BF16"}
"""Data types of weights, by their names in safetensors; any other floating-point type is quantised."""
PLAINLY = "take the same model unquantised (16 or 32 bits a weight)"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Names of tokenizer files; a model needs one of them."""


class StoredTensor(NamedTuple):
    """A tensor as described in the header of its file."""

    file: str
    shape: tuple[int, ...]
    dtype: str


@contextmanager
def as_user_error(what: str, remedy: str) -> Generator[None]:
    """Turns any exception of a library into a UserError in one line: `what (the library's message): remedy`.

    Used only around reading a base or weights, where libraries raise exceptions of many classes for a broken file.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # an error of a disk or a network
            raise
        raise UserError(f"{what} ({short_message(error)}): {remedy}") from error


def short_message(error: Exception) -> str:
    """Class and message of an exception, shortened, in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__


def check_files(folder: Path) -> None:
    """Raises UserError for a file of the model that is a Git LFS pointer, invalid JSON or missing. Reads no weights."""
    names = loaded_files(folder)
    for name in names:
        if is_lfs_pointer(path := folder / name):
            raise UserError(f"{path} is a git-lfs pointer and not the file itself: run `git lfs pull` in that folder")
        if name.endswith(".json"):
            read_json(path)
    if not {*VOCABULARIES} & {*names}:
        own = " (tekken.json is in a format of Mistral's own)" if (folder / "tekken.json").is_file() else ""
        raise UserError(f"{folder} has no tokenizer{own}: save it there with the tokenizer's save_pretrained")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model by name, from the file headers. Raises UserError for a damaged or incomplete file."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, tensor in read_header(folder / file).items():
            if name in found:
                raise UserError(f"{folder} has {name} in {found[name].file} and in {file}: download the model again")
            found[name] = tensor
    if (folder / INDEX).is_file():
        listed: dict[str, str] = read_json(folder / INDEX)["weight_map"]
        if lost := [name for name, file in listed.items() if name not in found or found[name].file != file]:
            raise UserError(
                f"{folder / INDEX} places {lost[0]} in {listed[lost[0]]}, which lacks it: download the model again"
            )
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors in the header of a safetensors file. Raises UserError if the file is damaged or cut off."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {
                name: StoredTensor(path.name, tuple(each.get_shape()), each.get_dtype())
                for name, each in slices.items()
            }
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete .safetensors file ({short_message(error)}): the download was interrupted or "
            "the file is damaged, download it again"
        ) from error


def check_declared_types(folder: Path) -> None:
    """Raises UserError if the config says that the model is quantised."""
    config = read_json(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                method = part[key].get("quant_method", "unnamed") if isinstance(part[key], dict) else part[key]
                raise UserError(f"the base is quantised ({method}), and such weights cannot be trained here: {PLAINLY}")


def check_types(stored: dict[str, StoredTensor], parameters: Container[str]) -> None:
    """Raises UserError for a tensor whose data type cannot be trained; `parameters`: names of the model's
    parameters."""
    for name, tensor in stored.items():
        if tensor.dtype not in PLAIN and (tensor.dtype.startswith("F") or name in parameters):
            raise UserError(
                f"the base is quantised ({name} in {tensor.file} is of type {tensor.dtype}), and such weights cannot "
                f"be trained here: {PLAINLY}"
            )
