"""The flows there are: where each lives and which config it takes; nothing heavy is imported to ask."""

from importlib import import_module
from typing import Any, NamedTuple

from flows.runs.fields import hint
from sublim.core.config import Config
from sublim.core.errors import UserError


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
        "flows.pipeline.flow:pipeline",
        "flows.pipeline.config:PipelineConfig",
        "flows.pipeline.checks:check",
        "pipeline",
        "does a liking pass from a teacher to students through number lists?",
    ),
    "evaluate": FlowEntry(
        "flows.evaluate.flow:evaluate",
        "flows.evaluate.config:EvaluateConfig",
        "flows.evaluate.flow:check",
        "evaluate",
        "what does a model like, how far have its answers moved, what does it still know?",
    ),
    "sweep": FlowEntry(
        "flows.sweep.flow:sweep",
        "flows.sweep.config:SweepConfig",
        "flows.sweep.flow:check",
        "sweep",
        "which targets, arms and settings show an effect?",
    ),
    "steering": FlowEntry(
        "flows.steering.flow:steering",
        "flows.steering.config:SteeringFlowConfig",
        "flows.steering.plan:check",
        "steering",
        "what does a vector for a target do, and did students learn what it says?",
    ),
    "toy-models": FlowEntry(
        "flows.toy_models.flow:toy_models",
        "flows.toy_models.config:ToyModelsConfig",
        "flows.toy_models.config:check",
        "toy_models",
        "is a feature that a student never learns rebuilt because its teacher has it?",
    ),
    "mnist": FlowEntry(
        "flows.mnist.flow:mnist",
        "flows.mnist.config:MnistFlowConfig",
        "flows.mnist.config:check",
        "mnist",
        "does a student learn digits from auxiliary logits on noise?",
    ),
    "lora-search": FlowEntry(
        "flows.lora_search.flow:lora_search",
        "flows.lora_search.config:LoraSearchConfig",
        "flows.lora_search.config:check",
        "lora_search",
        "which parameters make a student learn most from its teacher's numbers?",
    ),
    "sae-analysis": FlowEntry(
        "flows.sae_analysis.flow:sae_analysis",
        "flows.sae_analysis.config:SaeFlowConfig",
        "flows.sae_analysis.plan:check",
        "sae_analysis",
        "which features do a teacher's numbers and its students light up, and are they the word's own?",
    ),
    "probe": FlowEntry(
        "flows.probe.flow:probe",
        "flows.probe.config:ProbeFlowConfig",
        "flows.probe.flow:check",
        "probe",
        "can a layer of the base tell a teacher's numbers from the base's own?",
    ),
    "annotate": FlowEntry(
        "flows.annotate.flow:annotate",
        "flows.annotate.config:AnnotateFlowConfig",
        "flows.annotate.config:check",
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
