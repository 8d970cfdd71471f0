"""Texts that a user can replace: a bundled YAML file or the user's own, checked against a config class."""

import difflib
import json
import string
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.files.user_files import parse_json, reading

BUNDLED = files("sublim") / "texts"
C = TypeVar("C", bound=Config)


def load_text(kind: type[C], name_or_path: str) -> C:
    """Reads a config of class `kind` from a bundled file, or a user's if the name ends in .yaml, .yml or .json.

    Raises UserError for an unknown name, for a file that cannot be read, and for fields that do not fit.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml", ".json"):
        with reading(path, "file of texts"):
            content = path.read_bytes()
    else:
        bundled = {each.name.removesuffix(".yaml"): each for each in BUNDLED.iterdir() if each.name.endswith(".yaml")}
        if name_or_path not in bundled:
            near = difflib.get_close_matches(name_or_path, bundled, n=1, cutoff=0)[0]
            raise UserError(f"no bundled texts are named {name_or_path} (nearest: {near}): name a .yaml or .json file")
        content = bundled[name_or_path].read_bytes()
    value = _decode(content, name_or_path, as_json=path.suffix == ".json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{name_or_path}: {_one_line(error.errors(), kind)}") from error


def _decode(content: bytes, name: str, *, as_json: bool) -> Any:
    try:
        text = content.decode("utf-8-sig")
        return parse_json(text) if as_json else parse_yaml(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text: save it as UTF-8") from error
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is not {'JSON' if as_json else 'YAML'}: {reason}") from error


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice; YAML's own loader would silently keep the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in keys[:number]:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
        return node


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML text; bytes are read as UTF-8 or, with a byte order mark, as UTF-16.

    Raises YAMLError, also for a key that occurs twice and for an impossible date or number.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error


def quoting_advice(problem: ErrorDetails) -> str:
    """The advice to quote a text that YAML reads as another type: `no` is false, 1984 a number, 2024-05-01 a date."""
    return ": put quotes around it, YAML reads it as no text" if problem["type"] == "string_type" else ""


def _one_line(errors: Sequence[ErrorDetails], kind: type[Config]) -> str:
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "missing":
            line = f"the field {field} is missing: add it"
        case "extra_forbidden":
            line = f"the field {field} is unknown: remove it (known are {', '.join(kind.model_fields)})"
        case "model_type" | "model_attributes_type":
            line = f"the file must hold the fields {', '.join(kind.model_fields)}" if not field else f"field {field}"
        case "string_pattern_mismatch":
            line = f"field {field}: it is empty or blank, write a text"
        case _:
            line = f"field {field}: {first['msg'].removeprefix('Value error, ')}{quoting_advice(first)}"
    return line if len(errors) == 1 else f"{line} (and {len(errors) - 1} more)"


Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


def check_placeholders(text: str, allowed: set[str], *, needed: Collection[str] = ()) -> str:
    """Returns `text`. Raises ValueError if a placeholder in it is not `allowed`, or a `needed` one is missing."""
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f'"{text}" has a lone brace ({error}): write {{{{ or }}}} for a brace') from error
    found = {name: bool(spec or conversion) for _, name, spec, conversion in pieces if name is not None}
    for name, altered in found.items():
        if name not in allowed or altered:
            known = ", ".join(f"{{{one}}}" for one in sorted(allowed)) or "none"
            raise ValueError(f'"{text}" has the placeholder {{{name}}} in it; what may be there: {known}')
    for name in sorted(set(needed) - found.keys()):
        raise ValueError(f'"{text}" lacks the placeholder {{{name}}}: put it where the value goes')
    return text
