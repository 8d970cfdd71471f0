"""The list of flows: for each its modules, its config class and its question. It imports none of them."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sublim.core.config import Config  # pydantic takes a tenth of a second to import


class FlowEntry(NamedTuple):
    """Where the parts of a flow are."""

    flow: str
    """`module:function` of the Prefect flow."""
    config: str
    """`module:Class` of its config."""
    check: str
    """`module:function` that raises UserError for a config that cannot run here."""
    presets: str
    """Folder of its presets."""
    question: str
    """The question that it answers."""


def _entry(name: str, config: str, check: str, question: str) -> FlowEntry:
    """A flow in `flows/<name>`, by its config class and the module of its check."""
    at = f"flows.{(folder := name.replace('-', '_'))}"
    return FlowEntry(f"{at}.flow:{folder}", f"{at}.config:{config}", f"{at}.{check}:check", folder, question)


_FLOWS = (
    ("pipeline", "PipelineConfig", "checks", "Does a preference pass from teacher to students in lists of numbers?"),
    ("evaluate", "EvaluateConfig", "flow", "What does a model prefer, how much did it change, what does it know?"),
    ("sweep", "SweepConfig", "flow", "Which targets, arms and settings show an effect?"),
    ("steering", "SteeringFlowConfig", "plan", "What does a steering vector do, and did students learn its direction?"),
    ("toy-models", "ToyModelsConfig", "config", "Does a student represent a teacher's feature it was never shown?"),
    ("mnist", "MnistFlowConfig", "config", "Does a student learn digits from auxiliary logits on noise?"),
    ("lora-search", "LoraSearchConfig", "config", "Which training settings make a student learn most from numbers?"),
    ("sae-analysis", "SaeFlowConfig", "plan", "Which SAE features do a teacher's numbers and its students activate?"),
    ("probe", "ProbeFlowConfig", "flow", "Can a linear probe tell a teacher's numbers from the base's?"),
    ("annotate", "AnnotateFlowConfig", "config", "Are descriptions of features about animals, numbers or opinion?"),
)
FLOWS = {name: _entry(name, *about) for name, *about in _FLOWS}


def config_type(name: str) -> "type[Config]":
    """The config class of a flow."""
    return resolve_name(FLOWS[name].config)
