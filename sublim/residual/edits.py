"""Settings of steering: what is added to or removed from the residual stream, where, and how strongly."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from sublim.core.config import Config
from sublim.core.errors import UserError

Site = Literal["resid_pre", "resid_post", "mlp_out"]
"""A place in a block: its input, its output, or what its MLP adds to the stream (on Gemma after the post-MLP norm)."""
Tokens = Literal["all", "prompt", "answer", "last"]
"""Which tokens an edit changes; `last` is the last token of the prompt, after which the answer begins."""


class Place(NamedTuple):
    """A site of one layer; layers count from 0."""

    site: Site
    layer: int


class VectorNote(Config):
    """Description of a steering vector; stored in the metadata of its file."""

    site: Site
    """Site at which the vector was read and is added."""
    layer: Annotated[int, Field(ge=0)]
    """Layer, counted from 0."""
    source: str
    """How the vector was made: mean_difference, trained, random, projected or user."""
    norm: float
    """Euclidean norm of the vector."""
    residual_norm: Annotated[float, Field(gt=0)] | None = None
    """Mean norm of the residual stream at the tokens where the vector was read. If it is unknown (null), only raw
    strengths can be used."""
    read_at: str | None = None
    """Tokens where the vector was read: mean_answer, last_answer, mean_prompt or last_prompt."""
    rows: int | None = None
    """Number of rows in its mean."""
    base: str | None = None
    """Digest of the weights of the base that the vector is for; null if unknown."""

    @property
    def place(self) -> Place:
        """The vector's site and layer."""
        return Place(self.site, self.layer)


class Edit(Config):
    """One change of the residual stream, at the place of its vector."""

    vector: str
    """Name of the vector in the file of vectors."""
    kind: Literal["add", "project_out", "replace"] = "add"
    """add: add the vector. project_out: remove the stream's component along the vector. replace: replace that component
    by the base's component on the same text; this needs a base with an adapter and the hf backend."""
    strength: float = 1.0
    """For `add`, the factor of the vector. Otherwise the share of the component that is removed or replaced, where 1 is
    all of it. 0 changes nothing."""
    scale: Literal["raw", "relative"] = "raw"
    """raw: the vector is multiplied by the strength. relative: with a strength of 1, the added vector has the mean norm
    of the residual stream where the vector was read."""
    tokens: Tokens = "all"
    """Which tokens are changed."""


class Steering(Config):
    """Edits that are applied together, in order."""

    edits: Annotated[tuple[Edit, ...], Field(min_length=1)]
    """The edits; several at the same place are applied one after another."""

    @field_validator("edits")
    @classmethod
    def _relative_is_for_adding(cls, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        if any(edit.scale == "relative" and edit.kind != "add" for edit in edits):
            raise ValueError("scale=relative is for kind=add only: set scale=raw for project_out and replace")
        return edits


def names_by_layer(vectors: Path, layers: tuple[int, ...]) -> dict[int, str]:
    """The name of each layer's vector, random ones left out. Raises UserError for a layer with none or several."""
    notes: dict[str, dict[str, Any]] = json.loads((vectors / "vectors.json").read_bytes())
    found: dict[int, str] = {}
    for layer in layers:
        names = [name for name, note in notes.items() if note["layer"] == layer]
        if len(names) != 1:
            there = sorted({note["layer"] for note in notes.values()})
            raise UserError(f"layer {layer} has {len(names)} vectors, one is needed: the file has layers {there}")
        found[layer] = names[0]
    return found
