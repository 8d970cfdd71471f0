"""Steering in vLLM's engine: hooks on the model it runs, at the same places as on the transformers model.

vLLM's blocks hand on their output in two parts, what the MLP adds and the stream before it, whose sum the next norm
takes. The first part is changed; the sum is what is looked at. The tokens of all requests are one long row: the
engine's own tables say whose each is, and every request says where its answer begins.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm import LLM

from sublim.errors import UserError
from sublim.inference.steered import Applied, Parts, parts_of
from sublim.steering import LoadedEdit

START = "sublim_start"
"""Where a request that is only read carries the place at which its answer begins, among vLLM's extra arguments."""
PartsOf = Callable[[Int[Tensor, " t"]], Parts]


def refuse_unsteerable(edits: list[LoadedEdit]) -> list[LoadedEdit]:
    """`edits`, if the engine can make them all. Raises UserError otherwise."""
    if any(edit.kind == "replace" for edit, *_ in edits):
        raise UserError("vLLM does not run the base beside the student, which replacing needs: use the hf backend")
    return edits


class EngineHooks:
    """The edits that are in an engine's model."""

    def __init__(self, llm: LLM) -> None:
        self.llm, self.handles, self.by_part = llm, list[RemovableHandle](), False

    def put(self, edits: Sequence[LoadedEdit]) -> None:
        """Puts `edits` in the place of the present ones."""
        if not edits and not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.by_part = any(edit.tokens != "all" for edit, *_ in edits)

        def attach(model: nn.Module) -> list[RemovableHandle]:
            return [attached(model, edit, self.parts) for edit in edits]

        (self.handles,) = self.llm.apply_model(attach)
        # What was cached was computed under other edits.
        self.llm.reset_prefix_cache()

    def parts(self, positions: Int[Tensor, " t"]) -> Parts:
        """Prompt, its last token or answer, for the tokens of the pass that is under way."""
        runner: Any = self.llm.llm_engine.model_executor.driver_worker.model_runner  # pyright: ignore
        batch, starts = runner.input_batch, np.zeros(len(positions), dtype=np.int64)
        bounds = runner.query_start_loc.np[: batch.num_reqs + 1]
        for number, name in enumerate(batch.req_ids[: batch.num_reqs]):
            request = runner.requests[name]
            extra = (request.sampling_params.extra_args if request.sampling_params else None) or {}
            starts[bounds[number] : bounds[number + 1]] = extra.get(START, request.num_prompt_tokens)
        return parts_of(positions, torch.from_numpy(starts).to(positions.device))


def attached(model: nn.Module, edit: LoadedEdit, parts: PartsOf) -> RemovableHandle:
    """One edit as a hook on its block."""
    block: nn.Module = model.get_submodule(f"model.layers.{edit.note.layer}")
    applied = Applied(edit, next(model.parameters()).device)
    match edit.note.site:
        case "resid_pre":
            return block.register_forward_pre_hook(_before(applied, parts), with_kwargs=True)
        case "resid_post":
            return block.register_forward_hook(_after(applied, parts, whole=True), with_kwargs=True)
        case "mlp_out":
            return block.register_forward_hook(_after(applied, parts, whole=False), with_kwargs=True)


def _before(applied: Applied, parts: PartsOf) -> Callable[..., Any]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = _named(args, kwargs)
        _begin(applied, parts, given)
        given["hidden_states"] = changed(applied, given["hidden_states"], given["residual"])
        return (), given

    return before


def _after(applied: Applied, parts: PartsOf, *, whole: bool) -> Callable[..., Any]:
    def after(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        added, stream = output
        _begin(applied, parts, _named(args, kwargs))
        return changed(applied, added, stream if whole else None), stream

    return after


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments by name."""
    return {**dict(zip(("positions", "hidden_states", "residual"), args, strict=False)), **kwargs}


def _begin(applied: Applied, parts: PartsOf, given: dict[str, Any]) -> None:
    applied.begin(0 if applied.edit.tokens == "all" else parts(given["positions"]))


def changed(applied: Applied, part: Float[Tensor, "t d"], rest: Float[Tensor, "t d"] | None) -> Float[Tensor, "t d"]:
    """`part` with the edit, which is made to the sum of `part` and `rest`."""
    stream = part if rest is None else part.float() + rest.float()
    edited = (part.float() + applied.delta(stream)).to(part.dtype)
    return edited if isinstance(applied.where, bool) else torch.where(applied.where, edited, part)
