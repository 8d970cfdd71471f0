"""Which settings of a run are not its preset's: what a report must say before the preset's own words hold."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from flows.settings import build, load_preset
from sublim.config import Config
from sublim.errors import UserError


def changes(config: Config, flow: str, preset: str) -> dict[str, Any]:
    """The settings in which `config` differs from `preset`, by dotted name, with their values in `config`.

    A preset that is no whole config by itself (a file of the user's may leave things to the command line) has none.
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
