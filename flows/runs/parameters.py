"""How the parameters of a flow run become its config and its name."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from prefect.runtime import flow_run

from flows.runs.settings import build, load_preset, merge
from sublim.core.config import Config

C = TypeVar("C", bound=Config)
Given = tuple[str, str | None, dict[str, Any] | None]
"""The parameters of a run: its preset, its target and the settings that replace the preset's."""


class Loader(Generic[C]):
    """Gives the config of a flow from the parameters of a run; `flow` is the folder of the flow's presets."""

    def __init__(self, flow: str, kind: type[C]) -> None:
        self.flow, self.kind = flow, kind
        self._named: tuple[Given, C] | None = None

    def __call__(self, preset: str, target: str | None = None, settings: dict[str, Any] | None = None) -> C:
        given, named = (preset, target, settings), self._named
        self._named = None
        if named is not None and named[0] == given:  # Prefect asks for the run's name right before it calls the flow
            return named[1]
        tree = merge(load_preset(self.flow, preset), settings or {})
        return build(self.kind, merge(tree, {"target": target}) if target else tree)

    def run_name(self, title: Callable[[C], str]) -> Callable[[], str]:
        """The function that names a run in Prefect's UI: what `title` says of its config, and the preset.

        The config that it builds is the one that the flow then gets.
        """

        def name() -> str:
            parameters = flow_run.get_parameters()
            given = parameters["preset"], parameters.get("target"), parameters.get("settings")
            config = self(*given)
            self._named = given, config
            return f"{title(config)} · {given[0]}"

        return name
