"""The fields of a config, walked through: for help texts, for short names and for hints about misspelt ones."""

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from sublim.core.config import Config, RunOnlyMark
from sublim.core.errors import UserError

NEAR = 0.9


class Field(NamedTuple):
    """One setting: its dotted name, its type and meaning in words, its default."""

    path: str
    kind: str
    meaning: str
    default: Any
    run_only: bool


def walk(config: type[Config], prefix: str = "") -> Iterator[Field]:
    """Every setting of `config`, those of nested configs and of all variants of a union included."""
    for name, field in config.model_fields.items():
        path = f"{prefix}{name}"
        default = None if field.default is PydanticUndefined else field.default
        run_only = any(isinstance(mark, RunOnlyMark) for mark in field.metadata)
        nested = configs_in(field.annotation)
        if not nested:
            yield Field(path, _type_name(field.annotation), field.description or "", default, run_only)
        for inner in nested:
            yield from walk(inner, f"{path}.")


def configs_in(annotation: Any) -> list[type[Config]]:
    """The config classes that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return configs_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for option in get_args(annotation) for found in configs_in(option)]
    return []


def kind_of(config: type[Config]) -> str | None:
    """The tag by which a union tells this config from its others."""
    field = config.model_fields.get("kind")
    return field.default if field else None


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type_name(option) for option in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return "nothing" if annotation is types.NoneType else annotation.__name__
    return str(annotation).replace("typing.", "")


def full_path(config: type[Config], name: str) -> str:
    """The setting that `name` means: itself, or the only one below the same part with that last word.

    `student.rank` is `student.method.rank`. Raises UserError with the nearest names for any other.
    """
    paths = list(dict.fromkeys(field.path for field in walk(config)))
    parts = {path.rsplit(".", depth)[0] for path in paths for depth in range(1, path.count(".") + 1)}
    if name in paths or name in parts or any(name.startswith(f"{path}.") for path in mappings(config)):
        return name
    head, _, leaf = name.rpartition(".")
    below = [path for path in paths if path.startswith(f"{head}." if head else "") and path.endswith(f".{leaf}")]
    if len(below) == 1:
        return below[0]
    raise UserError(f"there is no setting {name!r}{hint(name, below or paths)}")


def mappings(config: type[Config]) -> list[str]:
    """Top settings that are mappings: what stands below them is not known beforehand."""
    return [name for name, field in config.model_fields.items() if get_origin(field.annotation) is dict]


def hint(name: str, paths: list[str]) -> str:
    """`: did you mean a, b or c?` from the names nearest to `name`, or where to find all."""
    near = sorted(((_likeness(name, path), path) for path in paths), reverse=True)[:3]
    likely = [path for likeness, path in near if likeness > max(NEAR, near[0][0] - 0.3)]
    return f": did you mean {' or '.join(likely)}?" if likely else ": `--help` lists them all"


def _likeness(name: str, path: str) -> float:
    """0 to 1.5: how alike the last words are, and half as much the parts before them."""
    (head, _, leaf), (path_head, _, path_leaf) = name.rpartition("."), path.rpartition(".")
    same = difflib.SequenceMatcher
    return same(None, leaf, path_leaf).ratio() + same(None, head, path_head).ratio() / 2
