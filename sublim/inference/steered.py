"""Edits of the residual stream in the hf backend: which tokens they change, and buffers that CUDA graphs can read.

A captured graph keeps reading the buffers of its edits. Other vectors or strengths at the same places are copied into
the buffers, so that no new capture is needed.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from sublim.core.errors import UserError
from sublim.residual.edits import Place, Tokens
from sublim.residual.hooks import PassEnded, attached_at, check_layers, ending_at
from sublim.residual.vectors import LoadedEdit

PROMPT, LAST, ANSWER = 0, 1, 2
Parts = Int[Tensor, "b t"] | int
"""The part of the text (PROMPT, LAST or ANSWER) of each token, or one number for a whole pass. Padding may have any."""
TOUCHED: dict[Tokens, frozenset[int]] = {
    "all": frozenset({PROMPT, LAST, ANSWER}),
    "prompt": frozenset({PROMPT, LAST}),
    "answer": frozenset({ANSWER}),
    "last": frozenset({LAST}),
}


def parts_of(places: Int[Tensor, "*b t"], starts: Int[Tensor, "*b s"]) -> Int[Tensor, "*b t"]:
    """The part of the text to which each of `places` belongs, where the answer begins at position `starts`."""
    return torch.where(places >= starts, ANSWER, torch.where(places == starts - 1, LAST, PROMPT))


class Steered:
    """Edits on one model. Before each pass `begin` must be told which part of the text each token belongs to."""

    def __init__(self, model: PreTrainedModel, edits: Sequence[LoadedEdit]) -> None:
        check_layers(model, [edit.note.layer for edit in edits])
        self.model = model
        self.applied = [Applied(edit, model.device) for edit in edits]
        self.replaced = [applied for applied in self.applied if applied.edit.kind == "replace"]
        if self.replaced:
            from sublim.models.adapters import adapter_layers

            self.adapters = adapter_layers(model)
            if not self.adapters:
                raise UserError("replacing a component by the base's needs an adapter on that base: give its weights")

    @property
    def base_layers(self) -> int:
        """How many blocks of the base must run besides those of the adapted model; 0 if nothing is replaced."""
        return max((applied.place.layer + 1 for applied in self.replaced), default=0)

    def takes(self, edits: Sequence[LoadedEdit]) -> bool:
        """Loads `edits` in place of the present ones if only vectors and strengths differ; otherwise returns False."""
        if [_shape(edit) for edit in edits] != [_shape(applied.loaded) for applied in self.applied]:
            return False
        for applied, edit in zip(self.applied, edits, strict=True):
            applied.load(edit)
        return True

    @contextmanager
    def installed(self) -> Generator[None]:
        """Inside the block the edits are attached to the model."""
        with ExitStack() as stack:
            for applied in self.applied:
                stack.enter_context(attached_at(self.model, applied.place, applied))
            yield

    def begin(self, parts: Parts) -> None:
        """Prepares the edits for a pass over tokens of these parts of their texts."""
        for applied in self.applied:
            applied.begin(parts)

    def read_base(self, run: Callable[[], object]) -> None:
        """Runs the base, without adapter and edits, up to the last replaced block, and stores its components.

        `run` runs one forward pass.
        """
        from sublim.models.adapters import unadapted

        for applied in self.applied:
            applied.reading = True
        last = Place("resid_post", self.base_layers - 1)
        with unadapted(self.adapters), ending_at(self.model, last), suppress(PassEnded):
            run()
        for applied in self.applied:
            applied.reading = False


class Applied:
    """One edit as a function on the residual stream at its place."""

    def __init__(self, loaded: LoadedEdit, device: torch.device) -> None:
        self.place: Place = loaded.note.place
        self.vector = torch.empty_like(loaded.values, device=device, dtype=torch.float32)
        self.strength = torch.empty((), device=device)
        """Share of the component that is taken out; an added vector is already scaled by its strength."""
        self.where: Tensor | bool = True
        self.reading, self.component = False, None
        self.load(loaded)

    def load(self, loaded: LoadedEdit) -> None:
        """Copies vector and strength into the buffers, which keep their addresses."""
        self.loaded, self.edit = loaded, loaded.edit
        unit = loaded.values / loaded.values.norm()
        self.vector.copy_(loaded.step if self.edit.kind == "add" else unit)
        self.strength.fill_(self.edit.strength)

    def begin(self, parts: Parts) -> None:
        """Computes which tokens of the coming pass are changed."""
        touched = TOUCHED[self.edit.tokens]
        if isinstance(parts, int) or self.edit.tokens == "all":
            self.where = self.edit.tokens == "all" or parts in touched
        else:
            self.where = torch.isin(parts, torch.tensor(sorted(touched), device=parts.device))[..., None]

    def __call__(self, stream: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"] | None:
        if self.reading:
            if self.edit.kind == "replace":
                self.component = self.along(stream)
            return None
        if self.where is False:
            return None
        changed = (stream.float() + self.delta(stream)).to(stream.dtype)
        return changed if self.where is True else torch.where(self.where, changed, stream)

    def delta(self, stream: Float[Tensor, "... d"]) -> Tensor:
        """The change that is added to the stream, in float32."""
        match self.edit.kind:
            case "add":
                return self.vector
            case "project_out":
                return -self.strength * self.along(stream) * self.vector
            case "replace":
                assert self.component is not None
                return self.strength * (self.component - self.along(stream)) * self.vector

    def along(self, stream: Float[Tensor, "... d"]) -> Float[Tensor, "... 1"]:
        """The stream's component along the vector."""
        return (stream.float() @ self.vector)[..., None]


def _shape(loaded: LoadedEdit) -> tuple[object, ...]:
    """The properties of an edit that are fixed in a captured graph, because it does not read them from a buffer."""
    return loaded.note.place, loaded.edit.kind, loaded.edit.tokens, len(loaded.values)
