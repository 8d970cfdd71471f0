"""Hooks on a transformers model that read the residual stream, change it or end the forward pass.

Everything goes through `attached_at`, so the tensor that is read at a place is also the one that is steered. Of a
block, `resid_pre` is the input, `resid_post` the output, and `mlp_out` what its MLP adds to the stream. On Gemma
`mlp_out` is the output of the norm after the MLP, because that norm would rescale anything added before it.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sublim.core.errors import UserError
from sublim.residual.edits import Place

Change = Callable[[Float[Tensor, "b t d"]], Float[Tensor, "b t d"] | None]
"""Takes the stream at a place and returns the stream that replaces it, or None to leave it unchanged."""


class PassEnded(Exception):
    """Raised inside a forward pass to end it early."""


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder blocks, in order. Raises UserError if the model does not call them `layers`, as GPT-2."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(
            f"the residual stream of {model.config.model_type} cannot be read or steered: take a base of another "
            "family, such as llama, qwen2 or gemma2"
        )
    return layers


def check_layers(model: PreTrainedModel, layers: Iterable[int]) -> None:
    """Raises UserError for a layer that the model does not have."""
    count = len(blocks(model))
    for layer in layers:
        if not 0 <= layer < count:
            raise UserError(f"the model has no layer {layer}: it has {count}, counted from 0 to {count - 1}")


@contextmanager
def attached_at(model: PreTrainedModel, place: Place, change: Change) -> Generator[None]:
    """Inside the block, every forward pass applies `change` to the stream at `place`.

    Several changes at one place run in the order in which they were attached.
    """
    check_layers(model, [place.layer])
    handle = _attach(blocks(model)[place.layer], place, change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ending_at(model: PreTrainedModel, place: Place) -> Generator[None]:
    """Inside the block, every forward pass ends at `place` by raising PassEnded; later layers do not run."""

    def end(_: Tensor) -> None:
        raise PassEnded

    with attached_at(model, place, end):
        yield


def _attach(block: nn.Module, place: Place, change: Change) -> RemovableHandle:
    def changed(values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        stream = change(values[0])
        return None if stream is None else (stream, *values[1:])

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return changed(args)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return changed(cast(tuple[Any, ...], output)) if isinstance(output, tuple) else change(output)

    if place.site == "resid_pre":
        return block.register_forward_pre_hook(before)
    module: Any = block
    if place.site == "mlp_out":
        module = getattr(block, "post_feedforward_layernorm", None) or getattr(block, "mlp", None)
        assert isinstance(module, nn.Module), f"{type(block).__name__} has no MLP that hooks could find"
    return module.register_forward_hook(after)
