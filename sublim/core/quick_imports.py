"""Making the first import of torch and transformers some seconds faster.

It runs without garbage collection, without scikit-learn and boto3, and transformers searches its own folder once and
no other packages.
"""

import gc
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property, partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

FUNCTIONS = ("scipy.optimize", "sklearn.metrics", "boto3", "torchaudio")
"""Modules from which transformers and accelerate import only functions, which text models never call.

They are for object detection, assisted decoding, SageMaker and audio. With their own imports they are a quarter of all
modules.
"""


@contextmanager
def without_collection() -> Generator[None]:
    """Stops garbage collection during the block that first imports torch, where it takes a quarter of the time.

    What was imported is left out of all later collections too. Does nothing where torch is imported already: then
    there may be models, which must be collected.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def deferred_imports(names: tuple[str, ...] = FUNCTIONS) -> Generator[None]:
    """Defers the import of these modules: a function imported from them in the block imports its module when called.

    Modules that are imported already are left alone. After the block, the modules are imported as usual.
    """
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules and _installed(name)}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


class _StandIn(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # transformers checks it to see whether a package is installed

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **named)

        return call


LOOKS = "transformers.utils.import_utils"
"""The module that searches the installed packages and transformers' own folder when it is imported."""


@contextmanager
def without_search() -> Generator[None]:
    """Lets transformers be imported without reading the file lists of all installed packages, or its files twice.

    It needs the file lists only for packages with another name than their module. What it finds is the same. Versions
    of transformers that work differently are imported as usual.
    """
    finder = _QuickFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _QuickFinder:
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == LOOKS else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _QuickLoader(spec.loader.name, spec.loader.path)
        return spec


class _QuickLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        usual = importlib.metadata.packages_distributions
        importlib.metadata.__dict__["packages_distributions"] = partial(_Distributions, usual)
        try:
            super().exec_module(module)
        finally:
            importlib.metadata.__dict__["packages_distributions"] = usual
        names: dict[str, Any] = module.__dict__
        # Its cache holds 128 of the 500 folders, which it visits twice in the same order, so that no visit is a hit.
        scan: Any = names.get("create_import_structure_from_path")
        if hasattr(scan, "cache_parameters"):
            names["create_import_structure_from_path"] = cache(scan.__wrapped__)
        if callable(ask := names.get("_candidate_distribution_names")):
            names["_candidate_distribution_names"] = lambda module: [own] if (own := _own(module)) else ask(module)


class _Distributions(Mapping[str, list[str]]):
    """The result of `packages_distributions`, which reads all file lists, computed when it is first used."""

    def __init__(self, ask: Callable[[], Mapping[str, list[str]]]) -> None:
        self._ask = ask

    @cached_property
    def _known(self) -> Mapping[str, list[str]]:
        return self._ask()

    def __getitem__(self, module: str) -> list[str]:
        return self._known[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _own(module: str) -> str | None:
    """The distribution with the module's own name, if it contains the module."""
    name = module.replace("_", "-")
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    declared = (found.read_text("top_level.txt") or "").split()
    has = module in declared if declared else f"\n{module}/" in "\n" + (found.read_text("RECORD") or "")
    return name if has else None
