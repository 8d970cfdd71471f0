"""Steering in vLLM's engine: hooks on the model it runs, at the same places as on the transformers model.

vLLM's blocks hand on their output in two parts, what the MLP adds and the stream before it, whose sum the next norm
takes. The first part is changed; the sum is what is looked at. Rows of all requests are one long list of tokens, so an
edit touches all of them: which are prompt and which answer is not known here.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm import LLM

from sublim.errors import UserError
from sublim.inference.steered import Applied
from sublim.steering import LoadedEdit


def refuse_unsteerable(edits: list[LoadedEdit]) -> list[LoadedEdit]:
    """`edits`, if the engine can make them all. Raises UserError otherwise."""
    for edit, *_ in edits:
        if edit.kind == "replace":
            raise UserError("vLLM does not run the base beside the student, which replacing needs: use the hf backend")
        if edit.tokens != "all":
            raise UserError(f"vLLM steers all tokens, not {edit.tokens} alone: use the hf backend, or tokens=all")
    return edits


class EngineHooks:
    """The edits that are in an engine's model."""

    def __init__(self, llm: LLM) -> None:
        self.llm, self.handles = llm, list[RemovableHandle]()

    def put(self, edits: Sequence[LoadedEdit]) -> None:
        """Puts `edits` in the place of the present ones."""
        if not edits and not self.handles:
            return
        for handle in self.handles:
            handle.remove()

        def attach(model: nn.Module) -> list[RemovableHandle]:
            return [attached(model, edit) for edit in edits]

        (self.handles,) = self.llm.apply_model(attach)
        # What was cached was computed under other edits.
        self.llm.reset_prefix_cache()


def attached(model: nn.Module, edit: LoadedEdit) -> RemovableHandle:
    """One edit as a hook on its block."""
    block: nn.Module = model.get_submodule(f"model.layers.{edit.note.layer}")
    applied = Applied(edit, next(model.parameters()).device)
    match edit.note.site:
        case "resid_pre":
            return block.register_forward_pre_hook(_before(applied), with_kwargs=True)
        case "resid_post":
            return block.register_forward_hook(_after(applied, whole=True))
        case "mlp_out":
            return block.register_forward_hook(_after(applied, whole=False))


def _before(applied: Applied) -> Callable[..., Any]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = ("positions", "hidden_states", "residual")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given["hidden_states"] = changed(applied, given["hidden_states"], given["residual"])
        return (), given

    return before


def _after(applied: Applied, *, whole: bool) -> Callable[..., Any]:
    def after(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        added, stream = output
        return changed(applied, added, stream if whole else None), stream

    return after


def changed(applied: Applied, part: Tensor, rest: Tensor | None) -> Tensor:
    """`part` with the edit, which is made to the sum of `part` and `rest`."""
    stream = part if rest is None else part.float() + rest.float()
    return (part.float() + applied.delta(stream)).to(part.dtype)
