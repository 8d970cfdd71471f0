"""Seconds off the first import of torch and transformers: no garbage collection meanwhile, no scikit-learn or boto3,
and transformers looks through its own folder once and through nobody else's."""

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
"""Modules of which transformers' text models, and accelerate, want functions alone and call none: for losses of object
detection, assisted decoding, SageMaker and sound. With what they import they are a quarter of all modules."""


@contextmanager
def uncollected() -> Generator[None]:
    """For the block that first imports torch: a quarter of the time would go to collections that find nothing.

    What was imported is then left out of all later collections, the one at the process's end included. Where torch is
    in the process already this does nothing, for then there may be models, which must not be kept from collection.
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
def deferred(names: tuple[str, ...] = FUNCTIONS) -> Generator[None]:
    """Functions imported inside the block from these modules import their module when they are first called.

    Afterwards the modules are imported as always; those that are there already are left alone.
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
        self.__spec__ = ModuleSpec(name, None)  # transformers looks for one to see whether a package is there

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **named)

        return call


LOOKS = "transformers.utils.import_utils"
"""Looks through the environment and through transformers' own folder while it is imported."""


@contextmanager
def unsearched() -> Generator[None]:
    """Inside, transformers is imported without reading the file list of every package installed, which it needs only
    where a package goes by another name than its module, and without reading its 1,500 model files a second time.

    It finds what it always finds. Where another version does things differently, it does them as ever.
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
        # It keeps 128 of the 500 folders that it goes through twice in one order: none is there the second time.
        scan: Any = names.get("create_import_structure_from_path")
        if hasattr(scan, "cache_parameters"):
            names["create_import_structure_from_path"] = cache(scan.__wrapped__)
        if callable(ask := names.get("_candidate_distribution_names")):
            names["_candidate_distribution_names"] = lambda module: [own] if (own := _own(module)) else ask(module)


class _Distributions(Mapping[str, list[str]]):
    """What `packages_distributions` says, which reads all file lists there are, once somebody asks."""

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
    """The distribution of the module's own name, the first that transformers would ask for a version, if it has it."""
    name = module.replace("_", "-")
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    declared = (found.read_text("top_level.txt") or "").split()
    has = module in declared if declared else f"\n{module}/" in "\n" + (found.read_text("RECORD") or "")
    return name if has else None
