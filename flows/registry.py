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


def _entry(name: str, config: str, check: str, question: str) -> FlowEntry:
    """A flow whose files are named alike: `flows/<name>` with its config class, and the module that has its check."""
    folder = name.replace("-", "_")
    package = f"flows.{folder}"
    return FlowEntry(
        f"{package}.flow:{folder}", f"{package}.config:{config}", f"{package}.{check}:check", folder, question
    )


_FLOWS = (
    ("pipeline", "PipelineConfig", "checks", "Does a preference pass from teacher to students in lists of numbers?"),
    ("evaluate", "EvaluateConfig", "flow", "What does a model prefer, how much did it change, what does it know?"),
    ("sweep", "SweepConfig", "flow", "Which targets, arms and settings show an effect?"),
    ("steering", "SteeringFlowConfig", "plan", "What does a steering vector do, and did students learn its direction?"),
    (
        "toy-models",
        "ToyModelsConfig",
        "config",
        "Does a student represent a teacher's feature that it was never shown?",
    ),
    ("mnist", "MnistFlowConfig", "config", "Does a student learn digits from auxiliary logits on noise?"),
    ("lora-search", "LoraSearchConfig", "config", "Which training settings make a student learn most from numbers?"),
    ("sae-analysis", "SaeFlowConfig", "plan", "Which SAE features do a teacher's numbers and its students activate?"),
    ("probe", "ProbeFlowConfig", "flow", "Can a linear probe tell a teacher's numbers from the base's?"),
    (
        "annotate",
        "AnnotateFlowConfig",
        "config",
        "Are the descriptions of SAE features about animals, numbers or opinion?",
    ),
)
FLOWS = {name: _entry(name, *about) for name, *about in _FLOWS}


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
