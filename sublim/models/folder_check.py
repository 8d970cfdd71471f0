"""The files of a model folder as they lie there: whole, readable, one set of weights, of types that can be trained."""

from collections.abc import Container, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from sublim.core.errors import UserError
from sublim.files.user_files import is_lfs_pointer
from sublim.models.files import INDEX, loaded_files, read_json, weight_files

PLAIN = {"F64", "F32", "F16", "BF16"}
"""Types of weights as safetensors names them; whatever else holds fractions is quantised."""
PLAINLY = "take the same model unquantised (16 or 32 bits a weight)"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files, any one of which is a tokenizer."""


class StoredTensor(NamedTuple):
    """A tensor as the header of its file describes it."""

    file: str
    shape: tuple[int, ...]
    dtype: str


@contextmanager
def told(what: str, remedy: str) -> Generator[None]:
    """Whatever a library raises inside becomes one line, `what (the library's own words): remedy`.

    Only around the reading of a base or of weights: what a library raises over a stranger's files has no common class.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # a disk's or a network's own trouble
            raise
        raise UserError(f"{what} ({said(error)}): {remedy}") from error


def said(error: Exception) -> str:
    """What an error says, short and on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__


def check_files(folder: Path) -> None:
    """Raises UserError for a file of the model that is a git-lfs pointer, not JSON, or not there. Reads no weights."""
    names = loaded_files(folder)
    for name in names:
        refuse_pointer(folder / name)
        if name.endswith(".json"):
            read_json(folder / name)
    if not {*VOCABULARIES} & {*names}:
        own = " (tekken.json is in a format of Mistral's own)" if (folder / "tekken.json").is_file() else ""
        raise UserError(f"{folder} has no tokenizer{own}: save it there with the tokenizer's save_pretrained")


def refuse_pointer(path: Path) -> None:
    """Raises UserError where a git-lfs pointer stands in the place of a file."""
    if is_lfs_pointer(path):
        raise UserError(f"{path} is a git-lfs pointer and not the file itself: run `git lfs pull` in that folder")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model by name, from the headers alone. Raises UserError for a damaged or quantised file."""
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
    """The tensors that a .safetensors file says it holds; its length is compared with what it should be."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {
                name: StoredTensor(path.name, tuple(each.get_shape()), each.get_dtype())
                for name, each in slices.items()
            }
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is no whole .safetensors file ({said(error)}): the download broke off or the file is damaged, "
            "fetch it again"
        ) from error


def check_declared_types(folder: Path) -> None:
    """Raises UserError where the config says that the model is quantised."""
    config = read_json(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                method = part[key].get("quant_method", "unnamed") if isinstance(part[key], dict) else part[key]
                raise UserError(f"the base is quantised ({method}), and such weights cannot be trained here: {PLAINLY}")


def check_types(stored: dict[str, StoredTensor], parameters: Container[str]) -> None:
    """Raises UserError for a tensor of a type that does not train. `parameters`: names of the model's own."""
    for name, tensor in stored.items():
        if tensor.dtype not in PLAIN and (tensor.dtype.startswith("F") or name in parameters):
            raise UserError(
                f"the base is quantised ({name} in {tensor.file} is of type {tensor.dtype}), and such weights cannot "
                f"be trained here: {PLAINLY}"
            )
