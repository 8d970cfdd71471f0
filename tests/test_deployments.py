"""prefect.yaml names flows, parameters and presets that exist: every flow on a GPU worker and without one."""

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.registry import FLOWS, load
from flows.settings import load_preset

ROOT = Path(__file__).parents[1]


class Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML's own loader would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice in one mapping: {sorted(keys)}"
        return super().construct_mapping(node, deep)


def deployments() -> list[dict[str, Any]]:
    return yaml.load((ROOT / "prefect.yaml").read_text(), Strict)["deployments"]


def test_every_flow_has_a_deployment_for_each_pool() -> None:
    found = Counter((each["entrypoint"], each["name"], each["work_pool"]["name"]) for each in deployments())
    flows = [entry.flow.replace(".", "/").replace(":", ".py:") for entry in FLOWS.values()]
    assert found == Counter((flow, pool, pool) for flow in flows for pool in ("a6000", "cpu"))


@pytest.mark.parametrize("each", deployments(), ids=lambda each: f"{each['entrypoint']}-{each['name']}")
def test_parameters_are_the_flow_s_and_the_preset_exists(each: dict[str, Any]) -> None:
    [entry] = [e for e in FLOWS.values() if e.flow.replace(".", "/").replace(":", ".py:") == each["entrypoint"]]
    assert set(each["parameters"]) <= set(inspect.signature(load(entry.flow).fn).parameters)
    assert load_preset(entry.presets, each["parameters"]["preset"])
    assert (each["tags"] == ["gpu"]) == (each["name"] == "a6000")
