"""Steering vectors: stored in safetensors files with a note for each, and checked against the model they are used on.

A file holds named vectors. Files written here have the notes (site, layer, source, norm) of all vectors as one JSON
text in the metadata entry `vectors`. A file from elsewhere may have just `site` and `layer` in its metadata. Reading a
file runs no code from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson
import torch
from jaxtyping import Float
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PretrainedConfig

from sublim.core.errors import UserError
from sublim.files.user_files import reading
from sublim.models.files import base_identity
from sublim.residual.edits import Edit, Steering, VectorNote

FILE = "vectors.safetensors"


class Vector(NamedTuple):
    """A steering vector in float32 with its note."""

    note: VectorNote
    values: Float[Tensor, " d"]


class LoadedEdit(NamedTuple):
    """An edit with the vector it names."""

    edit: Edit
    note: VectorNote
    values: Float[Tensor, " d"]

    @property
    def step(self) -> Float[Tensor, " d"]:
        """The vector that an edit of kind `add` adds to the stream. Raises UserError if its relative scale is
        unknown."""
        if self.edit.scale == "raw":
            return self.edit.strength * self.values
        if self.note.residual_norm is None:
            raise UserError(
                f"vector {self.edit.vector!r} has no residual_norm, the norm of the stream where it was read: "
                "use scale=raw, or add residual_norm to its metadata"
            )
        return self.edit.strength * self.note.residual_norm / self.values.norm() * self.values


def noted(values: Float[Tensor, " d"], note: VectorNote) -> Vector:
    """The vector in float32 with its norm in its note. Raises UserError for NaN, infinity and a vector of zeros."""
    values = values.detach().to("cpu", torch.float32)
    if not bool(values.isfinite().all()):
        raise UserError("the steering vector holds NaN or infinity: make it again")
    norm = float(values.norm())
    if norm == 0:
        raise UserError("the steering vector is zero: the two means it is the difference of are equal there")
    return Vector(note.model_copy(update={"norm": norm}), values)


def write_vectors(folder: Path, vectors: Mapping[str, Vector]) -> None:
    """Writes vectors.safetensors. All notes are in one metadata entry, because the order of entries is not fixed."""
    named = {name: vectors[name] for name in sorted(vectors)}
    notes = orjson.dumps({name: vector.note.model_dump(mode="json") for name, vector in named.items()}).decode()
    tensors = {name: vector.values.contiguous() for name, vector in named.items()}
    (folder / FILE).write_bytes(save(tensors, {"vectors": notes}))


def read_vectors(path: Path, stated: Mapping[str, Any] | None = None) -> dict[str, Vector]:
    """The vectors of a file or of a payload folder, by name.

    `stated`: site and layer, for a file whose metadata do not have them. Raises UserError for a file that holds no
    vectors or does not give their site and layer.
    """
    path = path / FILE if path.is_dir() else path
    with reading(path, "safetensors file of vectors", SafetensorError), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        notes = orjson.loads(metadata.get("vectors", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not tensors or not isinstance(notes, dict):
        what = "the notes in its metadata are not a JSON object" if tensors else "it holds no tensor"
        raise UserError(f"{path} is not a safetensors file of vectors ({what}): give another file")
    known = cast(dict[str, Any], notes)
    return {
        name: _vector(path, name, known.get(name), metadata, stated or {}, values) for name, values in tensors.items()
    }


def _vector(
    path: Path, name: str, note: Any, metadata: Mapping[str, Any], stated: Mapping[str, Any], values: Tensor
) -> Vector:
    if not values.is_floating_point():
        raise UserError(f"{path}: vector {name!r} holds {values.dtype}: give floating-point numbers")
    if values.ndim > 1 and values.numel() == values.shape[-1]:
        values = values.flatten()  # a mean that kept its reduced dimensions
    if values.ndim != 1 or not len(values):
        shape = tuple(values.shape)
        raise UserError(
            f"{path}: {name!r} has shape {shape}, a vector has one dimension: give a named vector for each place"
        )
    if note is None:
        known = {key: metadata[key] for key in ("site", "layer", "residual_norm", "base") if key in metadata}
        note = {"source": "user", "norm": 0.0, **stated, **known}
        if not {"site", "layer"} <= note.keys():
            raise UserError(f"{path}: vector {name!r} has no site and layer: write both into the metadata")
    try:
        found = noted(values, VectorNote.model_validate(note))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise UserError(f"{path}: the note of vector {name!r} is not valid ({field}): {first['msg']}") from error
    except UserError as error:
        raise UserError(f"{path}: {name!r}: {error}") from error
    for key, value in stated.items():
        if getattr(found.note, key) != value:
            raise UserError(
                f"{path}: the note of vector {name!r} says {key} {getattr(found.note, key)}, the settings say {value}: "
                f"leave `{key}` out, or correct the file"
            )
    return found


def check_vector(name: str, vector: Vector, config: PretrainedConfig, base: Path) -> None:
    """Raises UserError if a vector does not fit the model's number of layers, its width or its base."""
    text = config.get_text_config()
    layers, width = text.num_hidden_layers, text.hidden_size
    if not vector.note.layer < layers:
        raise UserError(f"vector {name!r} is for layer {vector.note.layer}, the model has 0 to {layers - 1}")
    if len(vector.values) != width:
        raise UserError(
            f"vector {name!r} has {len(vector.values)} numbers, the model's width is {width}: take a vector made on "
            "this model"
        )
    if vector.note.base is not None and vector.note.base != base_identity(base):
        raise UserError(f"vector {name!r} was made on another base: give the base it was made on")


def load_edits(
    steering: Steering, vectors: Mapping[str, Vector], config: PretrainedConfig, base: Path
) -> list[LoadedEdit]:
    """The edits with their vectors. Raises UserError for a missing name or a vector that does not fit the model."""
    loaded: list[LoadedEdit] = []
    for edit in steering.edits:
        if edit.vector not in vectors:
            raise UserError(f"there is no vector {edit.vector!r}: the file has {', '.join(sorted(vectors))}")
        check_vector(edit.vector, vectors[edit.vector], config, base)
        loaded.append(LoadedEdit(edit, *vectors[edit.vector]))
        _ = loaded[-1].step  # raises at once for a relative strength without a scale
    return loaded


def random_like(vector: Vector, generator: torch.Generator) -> Vector:
    """A random vector of equal norm at the same place: the control that shows what any vector of this norm does."""
    values = torch.randn(len(vector.values), generator=generator)
    return noted(values * (vector.values.norm() / values.norm()), vector.note.model_copy(update={"source": "random"}))
