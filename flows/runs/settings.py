"""Presets, the user's settings over them, and the settings that differ from the preset."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from flows.runs.fields import configs_in, full_path, hint, kind_of, walk
from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.files.text_files import parse_yaml, quoting_advice
from sublim.files.user_files import reading

C = TypeVar("C", bound=Config)
Tree = dict[str, Any]


def changes(config: Config, flow: str, preset: str) -> dict[str, Any]:
    """The settings in which `config` differs from `preset`: dotted names with their values in `config`.

    Empty for a preset that is not a complete config by itself, such as a file that needs more from the command line.
    """
    try:
        plain = build(type(config), load_preset(flow, preset))
    except UserError:
        return {}
    before = dict(_leaves(plain.model_dump(mode="json")))
    after = dict(_leaves(config.model_dump(mode="json")))
    return {name: value for name, value in after.items() if name not in before or before[name] != value}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def preset_folder(flow: str) -> Path:
    """The folder of the presets that come with `flow`."""
    return Path(__file__).parents[1] / flow / "presets"


def presets(flow: str) -> list[str]:
    """Names of the presets that come with `flow`."""
    return sorted(path.stem for path in preset_folder(flow).glob("*.yaml"))


def load_preset(flow: str, name: str, below: tuple[str, ...] = ()) -> Tree:
    """The settings of a preset, given by its name or by the path of a YAML file.

    A preset may start from another one: `extends: name`, or `extends: flow/name` for a preset of another flow. A part
    of the settings may do so too: `study: {extends: pipeline/quickstart, ...}`. `below` are the presets that led here.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else preset_folder(flow) / f"{name}.yaml"
    if not path.exists():
        have = presets(flow)
        raise UserError(f"there is no preset {name!r} of {flow}{hint(name, have)} (have: {', '.join(have)})")
    if str(path) in below:
        raise UserError(f"{path} extends itself: {' -> '.join([*below, str(path)])}")
    return _extended(read_tree(path), flow, path, (*below, str(path)))


def _extended(tree: Tree, flow: str, path: Path, below: tuple[str, ...], part: str = "") -> Tree:
    """`tree` on top of the preset that it extends, and every part of it on top of the one that the part extends."""
    own = {
        name: _extended(cast(Tree, value), flow, path, below, f"{part}{name}.") if isinstance(value, dict) else value
        for name, value in tree.items()
        if name != "extends"
    }
    parent = tree.get("extends")
    if not parent:
        return own
    if not isinstance(parent, str) or (part and "/" not in parent):
        wanted = "one preset of a flow, as in pipeline/quickstart" if part else "the name of one preset"
        raise UserError(f"{path}: {part}extends is {parent!r} and should be {wanted}")
    other, _, name = parent.rpartition("/")
    inherited = load_preset(other or flow, name, below)
    if part:
        inherited.pop("about", None)  # it describes the other preset's own runs
    return merge(inherited, own)


def read_tree(path: Path) -> Tree:
    """The mapping in a YAML or JSON file. Raises UserError when the file holds no mapping."""
    with reading(path, "file of settings"):
        content = path.read_bytes()
    try:
        tree = parse_yaml(content)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings: write them as `name: value` lines")
    return cast(Tree, tree)


def merge(under: Tree, over: Mapping[str, Any]) -> Tree:
    """`under` with the values of `over`. A part with another `kind` replaces the whole part below it."""
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(value, Mapping) and isinstance(below, dict):
            part = cast(Mapping[str, Any], value)
            other_kind = "kind" in part and part["kind"] != cast(Tree, below).get("kind")
            merged[name] = dict(part) if other_kind else merge(cast(Tree, below), part)
        else:
            merged[name] = value
    return merged


def assignments(config: type[Config], texts: Iterable[str]) -> Tree:
    """Texts such as `a.b=value` as a tree of settings; values are YAML (`[1, 2]`, `true`, `1e-4`)."""
    tree: Tree = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write it as name=value")
        try:
            given = parse_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: the value is not YAML") from error
        tree = merge(tree, tree_of({full_path(config, name.strip()): given}))
    return tree


def tree_of(values: Mapping[str, Any]) -> Tree:
    """Settings by dotted name as a tree."""
    tree: Tree = {}
    for name, value in values.items():
        leaf: Any = value
        for part in reversed(name.split(".")):
            leaf = {part: leaf}
        tree = merge(tree, leaf)
    return tree


def build(config: type[C], tree: Tree) -> C:
    """The config made from a tree of settings.

    Raises UserError, in one line, for values that are not allowed and for unknown names, with similar names.
    """
    whole = completed(config, tree)
    try:
        return config.model_validate(whole)
    except ValidationError as error:
        problems = [each for each in error.errors() if not _follows(each, error.errors())]
        raise UserError("; ".join(_explained(config, whole, problem) for problem in problems[:3])) from error


def completed(config: type[Config], tree: Mapping[str, Any]) -> Tree:
    """`tree` with the defaults of nested configs filled in, so that a single value of a part may be given alone."""
    whole = dict(tree)
    for name, field in config.model_fields.items():
        part = whole.get(name)
        if isinstance(part, Mapping):
            below = field.default.model_dump() if isinstance(field.default, Config) else {}
            laid = merge({name: below}, {name: cast(Mapping[str, Any], part)})[name]
            chosen = [kind for kind in configs_in(field.annotation) if laid.get("kind") in (None, kind_of(kind))]
            whole[name] = completed(chosen[0], laid) if len(chosen) == 1 else laid
    return whole


def _follows(problem: Any, problems: list[Any]) -> bool:
    """Whether a list is too short only because its items were refused, which is a problem of its own."""
    place = problem["loc"]
    below = (each for each in problems if len(each["loc"]) > len(place) and each["loc"][: len(place)] == place)
    return problem["type"] == "too_short" and any(below)


def _explained(config: type[Config], tree: Tree, problem: Any) -> str:
    name, given = _place(tree, problem), f" (given: {problem['input']!r})"
    match problem["type"]:
        case "extra_forbidden" if name.rpartition(".")[2] == "extends":
            return "extends works in a preset: give this file as --preset FILE"
        case "extra_forbidden":
            return f"there is no setting {name!r}{hint(name, [field.path for field in walk(config)])}"
        case "tuple_type" | "list_type":
            return f"{name}: write it as a list, as in [0, 1]{given}"
        case "too_short":
            return f"{name}: give at least {problem['ctx']['min_length']}{given}"
        case "missing":
            return f"{name} is missing: add --set {name}=VALUE"
        case "union_tag_not_found":
            return f"{name}: its `kind` is missing"
        case "union_tag_invalid":
            context = problem["ctx"]
            return f"{name}.kind: should be one of {context['expected_tags']} (given: {context['tag']!r})"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{name or 'settings'}: write it as {{name: value, ...}}{given}"
        case _:
            message = str(problem["msg"]).removeprefix("Value error, ")
            shown = "" if isinstance(problem["input"], dict | list) else given
            return f"{name or 'settings'}: {message[0].lower()}{message[1:]}{shown}{quoting_advice(problem)}"


def _place(tree: Tree, problem: Any) -> str:
    """The dotted name of the setting that a problem is about. Pydantic's location also has the variants of unions."""
    found, here = list[str](), cast(Any, tree)
    for part in problem["loc"]:
        # The location may be an index beyond the end of the list.
        listed = isinstance(here, list | tuple) and isinstance(part, int) and part < len(cast(Any, here))
        if listed or (isinstance(here, Mapping) and part in here):
            found.append(str(part))
            here = cast(Any, here[part])
    if problem["type"] == "missing":
        found.append(str(problem["loc"][-1]))
    return ".".join(found)
