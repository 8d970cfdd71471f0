"""Directions that hold about as much of a student's change as its own vector does: the controls of necessity.

A random direction of d holds 1/d of any change, so that replacing the student's component along it replaces next to
nothing. Fair controls hold as much: the control student's vector, other teachers' vectors, and the leading principal
components of what is left of the student's change when its own vector's part is taken out (they are orthogonal to it
and hold more than any other direction could), alone and the first few together.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sublim.activations.read import open_reader
from sublim.activations.reading import Text
from sublim.activations.token_places import marked_rows
from sublim.core.progress import progress
from sublim.models.files import read_json, write_json
from sublim.residual.vectors import Vector, noted, read_vectors, write_vectors
from sublim.steering.energy_config import OWN, Energies, Energy, EnergyConfig
from sublim.training.checkpoints import chosen_weights
from sublim.traits.words import written


def change_directions(
    out: Path,
    config: EnergyConfig,
    *,
    scratch: Path,
    base: Path,
    weights: Path,
    vectors: Path,
    controls: dict[str, Path],
) -> dict[str, Any]:
    """Stage: writes vectors.safetensors, vectors.json and energies.json (`Energies`).

    `vectors` holds v_student with its random vectors, and each of `controls` (named by direction, as v_control or
    teacher-wolf) a vector at the same places. Costs two forward passes over the questions, by the base and by the
    student in `weights`. Special tokens are not read.
    """
    config = config.resolved()
    own = read_vectors(vectors)
    beside = {direction: read_vectors(path) for direction, path in controls.items()}
    names: list[str] = [*read_json(vectors / "vectors.json")]
    change = read_change(config, base, weights)
    made, rows = dict[str, Vector](), list[Energy]()
    for name in names:
        directions = {OWN: own[name]}
        directions |= {direction: each[name] for direction, each in beside.items() if name in each}
        random = {key.removeprefix(f"{name}/"): each for key, each in own.items() if key.startswith(f"{name}/random-")}
        at = change[config.places.index(own[name].note.place)].double()
        found = leading_components(at, own[name].values.double(), config.most)
        kept = {f"component-{number}": _component(own[name], each) for number, each in enumerate(found)}
        layer = own[name].note.layer
        for direction, vector in (directions | kept | random).items():
            called = name if direction == OWN else f"{name}/{direction}"
            made[called] = vector
            cosine = float(torch.cosine_similarity(vector.values.double(), own[name].values.double(), dim=0).abs())
            share = share_along(at, vector.values.double())
            rows.append(Energy(layer=layer, direction=direction, vectors=[called], share=share, cosine=cosine))
        rows = [*_chosen(rows, layer, config.components)]
    write_vectors(out, made)
    write_json(out / "vectors.json", {name: own[name].note.model_dump(mode="json") for name in names})
    energies = Energies(rows=rows, tokens=change.shape[1])
    (out / "energies.json").write_text(energies.model_dump_json(indent=1), encoding="utf-8")
    return {"tokens": energies.tokens}


def read_change(config: EnergyConfig, base: Path, weights: Path) -> Float[Tensor, "p t d"]:
    """The student's stream minus the base's at every token that is not special, by place."""
    rows = [
        {"id": number, "prompt": question, "answer": written(config.word), "system": config.system}
        for number, question in enumerate(config.questions)
    ]
    found: list[Tensor] = []
    with progress("reading the change", 2) as advance:
        for model in (None, chosen_weights(weights, config.weights_update)):
            with open_reader(config, base, model) as opened:
                marked = marked_rows(opened.tokenizer, rows)
                texts = [Text(one.ids, [[at] for at, own in enumerate(one.special) if not own]) for one in marked]
                read = dict(opened.reader.read([[text] for text in texts]))
            found.append(torch.cat([read[number][0].values for number in range(len(texts))]).transpose(0, 1))
            advance(1)
    return found[1] - found[0]


def share_along(change: Float[Tensor, "t d"], direction: Float[Tensor, " d"]) -> float:
    """The energy of the change along a direction, as a share of all its energy; 0 where nothing changed."""
    whole = float(change.square().sum())
    return float((change @ (direction / direction.norm())).square().sum()) / whole if whole > 0 else 0.0


def leading_components(
    change: Float[Tensor, "t d"], own: Float[Tensor, " d"], most: int
) -> Iterator[Float[Tensor, " d"]]:
    """The principal components (of second moments, not centred) of what of the change is orthogonal to `own`, the
    largest first; fewer than `most` where the rest of the change has fewer dimensions."""
    unit = own / own.norm()
    _, scales, basis = torch.linalg.svd(change - (change @ unit)[:, None] * unit, full_matrices=False)
    for scale, component in zip(scales[:most], basis[:most], strict=True):
        if scale > 1e-6 * scales[0]:
            yield component - (component @ unit) * unit


def _component(own: Vector, values: Float[Tensor, " d"]) -> Vector:
    """A component as a vector as long as v_student, at its place."""
    return noted(values / values.norm() * own.note.norm, own.note.model_copy(update={"source": "component"}))


def _chosen(rows: list[Energy], layer: int, single: int) -> Iterator[Energy]:
    """The rows with only the first `single` components alone in this layer, and after them those few components that
    together hold as much as v_student, or all where they hold less."""
    own = next(row for row in rows if row.layer == layer and row.direction == OWN)
    parts = [row for row in rows if row.layer == layer and row.direction.startswith("component-")]
    together, held = list[Energy](), 0.0
    for part in parts:
        if held < own.share:
            together.append(part)
            held += part.share
    alone = {id(part) for part in parts[single:]}
    yield from (row for row in rows if id(row) not in alone)
    if together:
        names = [name for part in together for name in part.vectors]
        yield Energy(layer=layer, direction="components", vectors=names, share=held, cosine=0.0)
