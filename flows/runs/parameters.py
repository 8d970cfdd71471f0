"""How the parameters of a flow run become its config and its name."""

from collections.abc import Callable
from typing import Any, TypeVar

from prefect.runtime import flow_run

from flows.runs.settings import build, load_preset, merge
from sublim.core.config import Config

C = TypeVar("C", bound=Config)
Load = Callable[[str, str | None, dict[str, Any] | None], C]
"""Takes a preset, a target (None for the preset's) and settings that replace the preset's."""


def loader(flow: str, kind: type[C]) -> Load[C]:
    """The function that gives the config of a flow whose presets lie in the folder `flow`."""

    def load(preset: str, target: str | None = None, settings: dict[str, Any] | None = None) -> C:
        tree = merge(load_preset(flow, preset), settings or {})
        return build(kind, merge(tree, {"target": target}) if target else tree)

    return load


def run_name(load: Load[C], title: Callable[[C], str]) -> Callable[[], str]:
    """The function that names a run in Prefect's UI: what `title` says of its config, and the preset."""

    def name() -> str:
        given = flow_run.get_parameters()
        config = load(given["preset"], given.get("target"), given.get("settings"))
        return f"{title(config)} · {given['preset']}"

    return name
