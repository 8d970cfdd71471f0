"""Steering as configuration: what is added to or taken out of the residual stream, where, and how strongly."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from sublim.core.config import Config
from sublim.core.errors import UserError

Site = Literal["resid_pre", "resid_post", "mlp_out"]
"""Of block l: what goes into it, what comes out of it, and what its MLP adds to the stream (after Gemma's own norm)."""
Tokens = Literal["all", "prompt", "answer", "last"]
"""Which tokens an edit touches; `last` is the prompt's last one, after which the answer begins."""


class Place(NamedTuple):
    """A site of one block, counted from 0."""

    site: Site
    layer: int


class VectorNote(Config):
    """What is known of a steering vector; kept in its file's metadata."""

    site: Site
    """Where it was read, and where it is added."""
    layer: Annotated[int, Field(ge=0)]
    """The block, counted from 0."""
    source: str
    """How it came about, in a word: mean_difference, trained, random, projected, user."""
    norm: float
    """Its Euclidean length."""
    residual_norm: Annotated[float, Field(gt=0)] | None = None
    """Mean length of the stream at the tokens it was read from; null when unknown, and then only raw strengths work."""
    read_at: str | None = None
    """The tokens it was read from: mean_answer, last_answer, mean_prompt, last_prompt."""
    rows: int | None = None
    """Rows it is a mean over."""
    base: str | None = None
    """Identity of the base's weights; null for a vector that says nothing of it."""

    @property
    def place(self) -> Place:
        """Site and layer."""
        return Place(self.site, self.layer)


class Edit(Config):
    """One change of the stream at the place of a vector."""

    vector: str
    """Name of the vector in the file of vectors."""
    kind: Literal["add", "project_out", "replace"] = "add"
    """add the vector; take the stream's component along it out; or put the base's component, on the same text, in its
    place (on a base with an adapter)."""
    strength: float = 1.0
    """For add: times the vector. For the others: the share of the component, 1 for all. 0 changes nothing."""
    scale: Literal["raw", "relative"] = "raw"
    """relative: a strength of 1 adds as much length as the stream itself had where the vector was read."""
    tokens: Tokens = "all"
    """Which tokens are touched."""


class Steering(Config):
    """Edits that are made together, in order."""

    edits: Annotated[tuple[Edit, ...], Field(min_length=1)]
    """The edits; several at one place follow each other."""

    @field_validator("edits")
    @classmethod
    def _relative_is_for_adding(cls, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        if any(edit.scale == "relative" and edit.kind != "add" for edit in edits):
            raise ValueError("a relative scale is for kind=add: a component has no other scale than its own")
        return edits


def names_by_layer(vectors: Path, layers: tuple[int, ...]) -> dict[int, str]:
    """The one true (not random) vector of each layer. Raises UserError for a layer with none or several."""
    notes: dict[str, dict[str, Any]] = json.loads((vectors / "vectors.json").read_bytes())
    found: dict[int, str] = {}
    for layer in layers:
        names = [name for name, note in notes.items() if note["layer"] == layer]
        if len(names) != 1:
            there = sorted({note["layer"] for note in notes.values()})
            raise UserError(f"layer {layer} has {len(names)} vectors, one is needed: the file has layers {there}")
        found[layer] = names[0]
    return found
