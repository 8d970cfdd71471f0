"""Names of the vectors in a payload, by layer; torch-free, for flows."""

import json
from pathlib import Path
from typing import Any

from sublim.errors import UserError


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
