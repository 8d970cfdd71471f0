"""The settings of a config class, listed for the help text, for short names and for hints about misspelt names."""

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from sublim.core.config import Config, Mark
from sublim.core.errors import UserError

SIMILAR = 0.9


class Field(NamedTuple):
    """One setting: its dotted name, type, meaning and default, and whether it leaves results unchanged (run_only)."""

    path: str
    kind: str
    meaning: str
    default: Any
    run_only: bool


def walk(config: type[Config], prefix: str = "", run_only: bool = False) -> Iterator[Field]:
    """Every setting of `config`, including those of nested configs and of all variants of a union."""
    for name, field in config.model_fields.items():
        path = f"{prefix}{name}"
        default = None if field.is_required() or field.default_factory else field.default
        marked = run_only or Mark.RUN_ONLY in field.metadata
        nested = configs_in(field.annotation)
        if not nested:
            meaning = field.description or (_summary(config) if name == "kind" else "")
            yield Field(path, _type_name(field.annotation), meaning, default, marked)
        for inner in nested:
            yield from walk(inner, f"{path}.", marked)


def groups(config: type[Config], prefix: str = "") -> dict[str, str]:
    """What each nested config of `config` is for, under its dotted name."""
    found: dict[str, str] = {}
    for name, field in config.model_fields.items():
        path = f"{prefix}{name}"
        for inner in configs_in(field.annotation):
            optional = not field.is_required() and not field.default_factory and field.default is None
            found[path] = f"{field.description or _summary(inner)}{' Off unless it is set.' if optional else ''}"
            found |= groups(inner, f"{path}.")
    return found


def _summary(config: type[Config]) -> str:
    return " ".join((config.__doc__ or "").partition("\n\n")[0].split())


def configs_in(annotation: Any) -> list[type[Config]]:
    """The config classes that a type annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return configs_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for option in get_args(annotation) for found in configs_in(option)]
    return []


def kind_of(config: type[Config]) -> str | None:
    """The value of `kind` by which a union recognises this config class, or None."""
    field = config.model_fields.get("kind")
    return field.default if field else None


def _type_name(annotation: Any) -> str:
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _type_name(parts[0])
    if kind in (Union, types.UnionType):
        return " | ".join(_type_name(part) for part in parts)
    if kind is Literal:
        return " | ".join(str(part) for part in parts)
    if kind in (list, tuple):
        return f"list of {_type_name(parts[0])}"
    if kind is dict:
        return "mapping"
    if isinstance(annotation, type) and not parts:
        return "null" if annotation is types.NoneType else annotation.__name__
    return str(annotation).replace("typing.", "")


def full_path(config: type[Config], name: str) -> str:
    """The full name of the setting that `name` means.

    A short name may leave out parts in the middle if only one setting fits: `student.rank` means
    `student.method.rank`. Raises UserError, with the most similar names, when none or several fit.
    """
    paths = list(dict.fromkeys(field.path for field in walk(config)))
    parts = {path.rsplit(".", depth)[0] for path in paths for depth in range(1, path.count(".") + 1)}
    mappings = [path for path, field in config.model_fields.items() if get_origin(field.annotation) is dict]
    if name in paths or name in parts or any(name.startswith(f"{path}.") for path in mappings):
        return name
    head, _, leaf = name.rpartition(".")
    below = [path for path in paths if path.startswith(f"{head}." if head else "") and path.endswith(f".{leaf}")]
    if len(below) == 1:
        return below[0]
    raise UserError(f"there is no setting {name!r}{hint(name, below or paths)}")


def hint(name: str, paths: list[str]) -> str:
    """`: did you mean a or b?` with the names most similar to `name`, or where all names are listed."""
    near = sorted(((_similarity(name, path), path) for path in paths), reverse=True)[:3]
    likely = [path for similarity, path in near if similarity > max(SIMILAR, near[0][0] - 0.3)]
    return f": did you mean {' or '.join(likely)}?" if likely else ": `--help` lists them all"


def _similarity(name: str, path: str) -> float:
    """Similarity from 0 to 1.5: that of the last words, plus half that of the parts before them."""
    (head, _, leaf), (path_head, _, path_leaf) = name.rpartition("."), path.rpartition(".")
    match = difflib.SequenceMatcher
    return match(None, leaf, path_leaf).ratio() + match(None, head, path_head).ratio() / 2
