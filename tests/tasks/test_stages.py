"""The page of stages says of each what its function takes, and refuses calls that give anything else."""

import importlib
import inspect

import pytest

from sublim.store.manifest import Artifact
from tasks import stages
from tasks.stage import Stage
from tests.tasks.sample_stages import CountConfig

STAGES = {name: each for name, each in vars(stages).items() if isinstance(each, Stage)}
GIVEN_BY_TASKS = {"out", "scratch"}


def test_the_page_has_every_stage_once():
    assert len(STAGES) > 50
    assert len({each.name for each in STAGES.values()}) == len(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_a_declaration_has_the_parameters_of_its_function(name: str):
    stage = STAGES[name]
    module, _, function = stage.function.partition(":")
    theirs = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert stage.declared is not None
    ours = stage.declared.parameters
    wanted = {each.name: each.default is each.empty for each in theirs.values() if each.name not in GIVEN_BY_TASKS}
    found = {each.name: each.default is each.empty for each in ours.values() if each.name != "label"}
    assert found == wanted
    config = theirs["config"].annotation
    declared = str(ours["config"].annotation)
    assert declared.removeprefix("Parameter") == (config if isinstance(config, str) else config.__name__)


def test_an_input_that_the_stage_does_not_have_is_refused_before_anything_is_looked_up():
    artifact = Artifact(stage="prepare_model", key="0" * 64, content="0" * 64)
    with pytest.raises(TypeError, match="'raws'"):
        stages.filter_numbers(CountConfig(), raw=artifact, raws=artifact)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing a required argument: 'raw'"):
        stages.filter_numbers(CountConfig())  # type: ignore[call-arg]
