"""The layers of a model that can have an adapter."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sublim.core.errors import UserError

LINEAR = (nn.Linear, Conv1D)
"""Classes of linear layers; GPT-2's are Conv1D."""


def check_modules(model: PreTrainedModel, wanted: Iterable[str]) -> None:
    """Raises UserError if a name in `wanted` is not the name of a layer that can have an adapter."""
    head = model.get_output_embeddings()
    named = [(name.rpartition(".")[2], module) for name, module in model.named_modules()]
    present = {name for name, module in named if isinstance(module, (*LINEAR, nn.Embedding))}
    if missing := sorted({*wanted} - present):
        linear = sorted({name for name, module in named if isinstance(module, LINEAR) and module is not head})
        raise UserError(
            f"the base has no module {missing[0]} for an adapter: set target_modules to some of {', '.join(linear)}"
        )
