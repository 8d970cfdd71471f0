"""Seconds off the first import of torch and transformers: no garbage collection meanwhile, and no scikit-learn."""

import gc
import importlib
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FUNCTIONS = ("scipy.optimize", "sklearn.metrics")
"""Modules of which transformers' text models import functions alone, and call none of them: for losses of object
detection and for assisted decoding. With what they import they are a fifth of all modules."""


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
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


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
