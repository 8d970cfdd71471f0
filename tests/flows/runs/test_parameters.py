"""A run's parameters become one config, which its name and its flow share."""

from typing import Any

import pytest

from flows.pipeline.config import PipelineConfig
from flows.runs import parameters
from flows.runs.parameters import Loader


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that were built."""
    made: list[Any] = []
    build = parameters.build

    def noted(*arguments: Any) -> Any:
        made.append(build(*arguments))
        return made[-1]

    monkeypatch.setattr(parameters, "build", noted)
    return made


def given(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    monkeypatch.setattr(parameters.flow_run, "get_parameters", lambda: values, raising=False)


def test_the_flow_gets_the_config_that_named_its_run(monkeypatch: pytest.MonkeyPatch, builds: list[Any]) -> None:
    load = Loader("pipeline", PipelineConfig)
    given(monkeypatch, preset="quickstart", target="owl,wolf", settings={"seeds": [4]})
    assert load.run_name(lambda config: ", ".join(config.target))() == "owl, wolf · quickstart"
    config = load("quickstart", "owl,wolf", {"seeds": [4]})
    assert (config.target, config.seeds) == (("owl", "wolf"), (4,))
    assert len(builds) == 1


def test_a_run_with_other_parameters_gets_its_own_config(monkeypatch: pytest.MonkeyPatch, builds: list[Any]) -> None:
    load = Loader("pipeline", PipelineConfig)
    given(monkeypatch, preset="quickstart", target=None, settings=None)
    load.run_name(lambda config: config.target[0])()
    assert load("quickstart", "wolf").target == ("wolf",)
    assert load("quickstart").target == ("owl",)
    assert len(builds) == 3
