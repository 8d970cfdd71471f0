"""Steering in vLLM's engine: hooks on the model it runs, at the same places as on the transformers model.

vLLM's blocks hand on their output in two parts, what the MLP adds and the stream before it, whose sum the next norm
takes. The first part is changed; the sum is what is looked at. The tokens of all requests are one long row: the
engine's own tables say whose each is, and every request says where its answer begins.

Where a component is replaced by the base's, every text is read twice in the same passes, with the adapter and, as a
copy that nothing edits, without: the copy's component is what the text gets (see vllm_pairs).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm import LLM

from sublim.backends.vllm.pairs import PAIR, Member, apart
from sublim.core.errors import UserError
from sublim.inference.steered import Applied, Parts, parts_of
from sublim.residual.vectors import LoadedEdit

START = "sublim_start"
"""Where a request that is only read carries the place at which its answer begins, among vLLM's extra arguments."""
UNTOUCHED = -1
"""The part of a text that a copy is."""


class Request(NamedTuple):
    """One request's tokens in the pass that is under way: from `begin` to `end` of its row."""

    begin: int
    end: int
    start: int
    """Place in the text at which the answer begins."""
    member: Member | None


class EngineHooks:
    """The edits that are in an engine's model."""

    def __init__(self, llm: LLM) -> None:
        self.llm, self.handles, self.by_part, self.paired = llm, list[RemovableHandle](), False, False
        self.silent = list[Applied]()
        """Edits that no pass has met yet."""

    def put(self, edits: Sequence[LoadedEdit]) -> None:
        """Puts `edits` in the place of the present ones."""
        if not edits and not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.silent.clear()
        self.by_part = any(edit.tokens != "all" for edit, *_ in edits)
        self.paired = any(edit.kind == "replace" for edit, *_ in edits)

        def attach(model: nn.Module) -> list[RemovableHandle]:
            return [attached(model, edit, self) for edit in edits]

        (self.handles,) = self.llm.apply_model(attach)
        # What was cached was computed under other edits.
        self.llm.reset_prefix_cache()

    def check_met(self) -> None:
        """After a pass: raises UserError where it went by without one of the edits."""
        if self.silent:
            place = self.silent[0].place
            raise UserError(f"vLLM ran past the edit of {place.site} at layer {place.layer}: use the hf backend")

    def requests(self) -> list[Request]:
        """Whose tokens are read in the pass that is under way."""
        runner: Any = self.llm.llm_engine.model_executor.driver_worker.model_runner  # pyright: ignore
        batch, found = runner.input_batch, list[Request]()
        bounds = runner.query_start_loc.np[: batch.num_reqs + 1].tolist()
        for number, name in enumerate(batch.req_ids[: batch.num_reqs]):
            request = runner.requests[name]
            extra = (request.sampling_params.extra_args if request.sampling_params else None) or {}
            start = extra.get(START, request.num_prompt_tokens)
            found.append(Request(bounds[number], bounds[number + 1], start, extra.get(PAIR)))
        return found

    def parts(self, positions: Int[Tensor, " t"]) -> Parts:
        """Prompt, its last token, answer or a copy, for the tokens of the pass that is under way."""
        starts, copies = np.zeros(len(positions), dtype=np.int64), np.zeros(len(positions), dtype=bool)
        for request in self.requests():
            starts[request.begin : request.end] = request.start
            copies[request.begin : request.end] = request.member is not None and request.member.copy
        found = parts_of(positions, torch.from_numpy(starts).to(positions.device))
        return found.masked_fill(torch.from_numpy(copies).to(positions.device), UNTOUCHED)

    def partners(self, positions: Int[Tensor, " t"]) -> Int[Tensor, " t"]:
        """The place in the row of each token's copy; a copy's own is its own."""
        found, copies = np.arange(len(positions)), dict[int, Request]()
        own = [request for request in self.requests() if request.member is not None]
        for request in own:
            if request.member and request.member.copy:
                copies[request.member.pair] = request
        for request in own:
            if request.member and not request.member.copy:
                copy = copies.get(request.member.pair)
                if copy is None or copy.end - copy.begin != request.end - request.begin:
                    raise apart()
                found[request.begin : request.end] = np.arange(copy.begin, copy.end)
        partners = torch.from_numpy(found).to(positions.device)
        if not torch.equal(positions[partners], positions):
            raise apart()
        return partners


def attached(model: nn.Module, edit: LoadedEdit, hooks: EngineHooks) -> RemovableHandle:
    """One edit as a hook on its block."""
    block: nn.Module = model.get_submodule(f"model.layers.{edit.note.layer}")
    applied = Applied(edit, next(model.parameters()).device)
    hooks.silent.append(applied)
    match edit.note.site:
        case "resid_pre":
            return block.register_forward_pre_hook(_before(applied, hooks), with_kwargs=True)
        case "resid_post":
            return block.register_forward_hook(_after(applied, hooks, whole=True), with_kwargs=True)
        case "mlp_out":
            return block.register_forward_hook(_after(applied, hooks, whole=False), with_kwargs=True)


def _before(applied: Applied, hooks: EngineHooks) -> Callable[..., Any]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = _named(args, kwargs)
        given["hidden_states"] = changed(applied, hooks, given, given["hidden_states"], given["residual"])
        return (), given

    return before


def _after(applied: Applied, hooks: EngineHooks, *, whole: bool) -> Callable[..., Any]:
    def after(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        added, stream = output
        return changed(applied, hooks, _named(args, kwargs), added, stream if whole else None), stream

    return after


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments by name."""
    return {**dict(zip(("positions", "hidden_states", "residual"), args, strict=False)), **kwargs}


def changed(
    applied: Applied,
    hooks: EngineHooks,
    given: dict[str, Any],
    part: Float[Tensor, "t d"],
    rest: Float[Tensor, "t d"] | None,
) -> Float[Tensor, "t d"]:
    """`part` with the edit, which is made to the sum of `part` and `rest`; `given`: the block's arguments."""
    if applied in hooks.silent:
        hooks.silent.remove(applied)
    everywhere = applied.edit.tokens == "all" and not hooks.paired
    parts = 0 if everywhere else hooks.parts(given["positions"])
    applied.begin(parts)
    if applied.where is True and not isinstance(parts, int):
        applied.where = (parts != UNTOUCHED)[..., None]
    stream = part if rest is None else part.float() + rest.float()
    if applied.edit.kind == "replace":
        applied.component = applied.along(stream)[hooks.partners(given["positions"])]
    edited = (part.float() + applied.delta(stream)).to(part.dtype)
    return edited if isinstance(applied.where, bool) else torch.where(applied.where, edited, part)
