"""The flows there are: where each lives and which config it takes; nothing heavy is imported to ask."""

from importlib import import_module
from typing import Any, NamedTuple

from flows.fields import hint
from sublim.config import Config
from sublim.errors import UserError


class FlowEntry(NamedTuple):
    """A flow by name."""

    flow: str
    """`module:function` of the Prefect flow."""
    config: str
    """`module:Class` of its config."""
    check: str
    """`module:function` that raises UserError for a config that cannot run here."""
    presets: str
    """Folder of its presets."""
    question: str
    """What it answers."""


FLOWS = {
    "pipeline": FlowEntry(
        "flows.pipeline:pipeline",
        "flows.pipeline_config:PipelineConfig",
        "flows.pipeline_plan:check",
        "pipeline",
        "does a liking pass from a teacher to students through number lists?",
    ),
    "evaluate": FlowEntry(
        "flows.evaluate:evaluate",
        "flows.evaluate_config:EvaluateConfig",
        "flows.evaluate:check",
        "evaluate",
        "what does a model like, how far have its answers moved, what does it still know?",
    ),
    "sweep": FlowEntry(
        "flows.sweep:sweep",
        "flows.sweep_config:SweepConfig",
        "flows.sweep:check",
        "sweep",
        "which targets, arms and settings show an effect?",
    ),
    "steering": FlowEntry(
        "flows.steering:steering",
        "flows.steering_config:SteeringFlowConfig",
        "flows.steering_plan:check",
        "steering",
        "what does a vector for a target do, and did students learn what it says?",
    ),
    "toy-models": FlowEntry(
        "flows.toy_models:toy_models",
        "flows.toy_models_config:ToyModelsConfig",
        "flows.toy_models_config:check",
        "toy_models",
        "is a feature that a student never learns rebuilt because its teacher has it?",
    ),
    "mnist": FlowEntry(
        "flows.mnist:mnist",
        "flows.mnist_config:MnistFlowConfig",
        "flows.mnist_config:check",
        "mnist",
        "does a student learn digits from auxiliary logits on noise?",
    ),
    "lora-search": FlowEntry(
        "flows.lora_search:lora_search",
        "flows.lora_search_config:LoraSearchConfig",
        "flows.lora_search_config:check",
        "lora_search",
        "which parameters make a student learn most from its teacher's numbers?",
    ),
    "sae-analysis": FlowEntry(
        "flows.sae_analysis:sae_analysis",
        "flows.sae_config:SaeFlowConfig",
        "flows.sae_plan:check",
        "sae_analysis",
        "which features do a teacher's numbers and its students light up, and are they the word's own?",
    ),
    "probe": FlowEntry(
        "flows.probe:probe",
        "flows.probe_config:ProbeFlowConfig",
        "flows.probe:check",
        "probe",
        "can a layer of the base tell a teacher's numbers from the base's own?",
    ),
    "annotate": FlowEntry(
        "flows.annotate:annotate",
        "flows.annotate_config:AnnotateFlowConfig",
        "flows.annotate_config:check",
        "annotate",
        "are features' descriptions about animals, numbers or opinion?",
    ),
}


def entry(name: str) -> FlowEntry:
    """The flow called `name`; UserError with the nearest names otherwise."""
    if name not in FLOWS:
        raise UserError(f"there is no flow {name!r}{hint(name, list(FLOWS))} (have: {', '.join(FLOWS)})")
    return FLOWS[name]


def config_type(name: str) -> type[Config]:
    """The config class of a flow."""
    return load(entry(name).config)


def load(name: str) -> Any:
    """The object that `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
