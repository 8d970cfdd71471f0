"""The layers of a model that an adapter can stand beside."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sublim.core.errors import UserError

LINEAR = (nn.Linear, Conv1D)
"""GPT-2's linear layers are of a class of their own."""


def check_modules(model: PreTrainedModel, wanted: Iterable[str]) -> None:
    """Raises UserError for a name in `wanted` that no layer of the model has which could get an adapter."""
    head = model.get_output_embeddings()
    named = [(name.rpartition(".")[2], module) for name, module in model.named_modules()]
    present = {name for name, module in named if isinstance(module, (*LINEAR, nn.Embedding))}
    if missing := sorted({*wanted} - present):
        linear = sorted({name for name, module in named if isinstance(module, LINEAR) and module is not head})
        raise UserError(
            f"the base has no module {missing[0]} for an adapter: set target_modules to some of {', '.join(linear)}"
        )
