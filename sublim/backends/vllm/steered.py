"""Steering in vLLM's engine: hooks on the model it runs, at the same places as on the transformers model.

A vLLM block returns its output in two parts: what its MLP adds, and the stream before that. The next norm takes their
sum. An edit is computed from the sum and added to the first part. The tokens of all requests form one long row: the
engine's tables say which request each token belongs to, and every request says where its answer begins.

Edits of kind `replace` are refused here (see `VllmSampler.edits`): they need the base's stream on the same text in the
same pass, which only the hf backend computes.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm import LLM

from sublim.core.errors import UserError
from sublim.inference.steered import ANSWER, Applied, Parts, parts_of
from sublim.residual.vectors import LoadedEdit

START = "sublim_start"
"""Key among vLLM's extra arguments of the position at which the answer begins, in a text that is only scored."""


class EngineHooks:
    """The edits that are attached to the model of an engine."""

    def __init__(self, llm: LLM) -> None:
        self.llm, self.handles, self.by_part = llm, list[RemovableHandle](), False
        self.not_applied = list[Applied]()
        """Edits that no forward pass has applied yet."""

    def put(self, edits: Sequence[LoadedEdit]) -> None:
        """Replaces the present edits by `edits`."""
        if not edits and not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.not_applied.clear()
        self.by_part = any(edit.tokens != "all" for edit, *_ in edits)

        def attach(model: nn.Module) -> list[RemovableHandle]:
            return [self._attached(model, edit) for edit in edits]

        (self.handles,) = self.llm.apply_model(attach)
        # Cached keys and values were computed under other edits.
        self.llm.reset_prefix_cache()

    def check_met(self) -> None:
        """Called after a pass: raises UserError if one of the edits was not applied."""
        if self.not_applied:
            place = self.not_applied[0].place
            raise UserError(f"vLLM did not apply the edit of {place.site} at layer {place.layer}: use the hf backend")

    def parts(self, positions: Int[Tensor, " t"]) -> Parts:
        """The part of its text (prompt, last token of the prompt, or answer) of every token in the current pass."""
        runner: Any = self.llm.llm_engine.model_executor.driver_worker.model_runner  # pyright: ignore
        batch, starts = runner.input_batch, np.zeros(len(positions), dtype=np.int64)
        bounds = runner.query_start_loc.np[: batch.num_reqs + 1].tolist()
        for name, (begin, end) in zip(batch.req_ids[: batch.num_reqs], pairwise(bounds), strict=True):
            request = runner.requests[name]
            extra = (request.sampling_params.extra_args if request.sampling_params else None) or {}
            starts[begin:end] = extra.get(START, request.num_prompt_tokens)
        return parts_of(positions, torch.from_numpy(starts).to(positions.device))

    def _attached(self, model: nn.Module, edit: LoadedEdit) -> RemovableHandle:
        """Attaches one edit to its block as a hook."""
        block, site = model.get_submodule(f"model.layers.{edit.note.layer}"), edit.note.site
        applied = Applied(edit, next(model.parameters()).device)
        self.not_applied.append(applied)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
            given = _named(args, kwargs)
            given["hidden_states"] = self._changed(applied, given, given["hidden_states"], given["residual"])
            return (), given

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Tensor]) -> Any:
            added, stream = output
            rest = stream if site == "resid_post" else None
            return self._changed(applied, _named(args, kwargs), added, rest), stream

        if site == "resid_pre":
            return block.register_forward_pre_hook(before, with_kwargs=True)
        return block.register_forward_hook(after, with_kwargs=True)

    def _changed(
        self, applied: Applied, given: dict[str, Any], part: Float[Tensor, "t d"], rest: Float[Tensor, "t d"] | None
    ) -> Float[Tensor, "t d"]:
        """`part` after the edit, which is made from the sum of `part` and `rest`. `given`: the block's arguments."""
        if applied in self.not_applied:
            self.not_applied.remove(applied)
        applied.begin(ANSWER if applied.edit.tokens == "all" else self.parts(given["positions"]))
        stream = part if rest is None else part.float() + rest.float()
        edited = (part.float() + applied.delta(stream)).to(part.dtype)
        return edited if isinstance(applied.where, bool) else torch.where(applied.where, edited, part)


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments by name."""
    return {**dict(zip(("positions", "hidden_states", "residual"), args, strict=False)), **kwargs}
