"""Mean activations of a model on rows of text, and steering vectors as differences of two means.

A vector compares either two texts or two models. In the first case one model reads two sets of rows with the same
prompts, such as the target's answers and the base's. Activations at prompt tokens are then equal, so they are refused.
In the second case two models, such as a student and the base, read the same text, and every token can be compared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from heapq import merge
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig

from sublim.activations.read import OpenReader, open_reader
from sublim.activations.reading import Text
from sublim.activations.token_places import marked_rows, picks
from sublim.core.digest import digest
from sublim.core.errors import UserError
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl
from sublim.files.tensor_files import write_tensors
from sublim.models.files import base_identity, read_json, write_json
from sublim.residual.edits import VectorNote
from sublim.residual.vectors import Vector, check_vector, noted, random_like, read_vectors, write_vectors
from sublim.steering.config import PROMPT_KINDS, DifferenceConfig, ImportConfig, MeansConfig, TrainVectorConfig
from sublim.store.payloads import digest_committed
from sublim.training.checkpoints import chosen_weights

CHUNK = 512
"""Rows read between two saves; it determines the memory that is needed."""
Row = dict[str, Any]


class Side(NamedTuple):
    """The mean activations of one model on one set of rows, with a note of which model, text and places these are."""

    values: Float[Tensor, "h n d"]
    """Means over even and over odd rows, by name in the order of the note's `names`."""
    norms: Float[Tensor, " n"]
    """Mean norm of the stream at the tokens that were read."""
    note: Mapping[str, Any]


def mean_activations(
    out: Path,
    config: MeansConfig,
    *,
    scratch: Path,
    base: Path,
    rows: Path,
    weights: Path | None = None,
    partner: Path | None = None,
) -> dict[str, Any]:
    """Stage: writes the mean activations on rows.jsonl and, with `partner`, on its rows for the same prompts.

    Rows of the two sides are paired by id and must have the same prompts. Rows without a partner are left out. The
    common prefix of a pair is read once. The cost is a forward pass up to the last layer. After a crash, finished
    chunks are not repeated.
    """
    config = config.resolved()
    weights = chosen_weights(weights, config.weights_update)
    sides = ["rows", "partner"] if partner else ["rows"]
    texts, chunks, count = ["" for _ in sides], list[dict[str, Tensor]](), 0
    with ExitStack() as stack:
        opened: OpenReader | None = None
        advance = stack.enter_context(progress("reading rows", config.rows or 0))
        pairs = islice(paired(rows, partner), config.rows)
        while part := list(islice(pairs, CHUNK)):
            texts = [digest([text, [_text(pair[side]) for pair in part]]) for side, text in enumerate(texts)]
            path = scratch / f"chunk-{len(chunks):05d}.safetensors"
            if not path.exists():
                opened = opened or stack.enter_context(open_reader(config, base, weights))
                write_tensors(path, summed(opened, config, part, count))
                kill_point("means:chunk")
            chunks.append(load_file(path))
            count += len(part)
            advance(len(part))
    if count < 2:
        raise UserError(f"{count} rows have a partner with the same id on the other side: give at least two")
    names = [f"{site}/{layer}/{kind}" for kind in config.read_at for site, layer in config.places]
    reader = {"base": base_identity(base), "weights": digest_committed(weights) if weights else None}
    halves = half_sizes(count)
    for number, side in enumerate(sides):
        sums, norms = (torch.stack([chunk[f"{kind}/{number}"] for chunk in chunks]).sum(0) for kind in ("sum", "norm"))
        if not bool(sums.isfinite().all()):
            raise UserError(
                "the residual stream holds NaN or infinity: the model's weights are broken, train them again"
            )
        write_tensors(out / f"{side}.safetensors", {"values": sums / halves[:, None, None], "norms": norms / count})
        note = {"names": names, "rows": count, "reader": reader, "text": texts[number], "dtype": config.dtype}
        write_json(out / f"{side}.json", note)
    return {"rows": count}


def summed(
    opened: OpenReader, config: MeansConfig, part: Sequence[tuple[Row, ...]], first: int
) -> dict[str, Float[Tensor, "..."]]:
    """Sums over a chunk, in float64: for each side `sum/0` (of even and of odd rows, by name) and `norm/0` (by name).

    `first`: number of the chunk's first row.
    """
    marked = marked_rows(opened.tokenizer, [row for pair in part for row in pair])
    texts = [Text(one.ids, [pick for kind in config.read_at for pick in picks(one, kind)]) for one in marked]
    groups = [texts[at : at + len(part[0])] for at in range(0, len(texts), len(part[0]))]
    found = dict(opened.reader.read(groups))
    sums: dict[str, Tensor] = {}
    for side in range(len(part[0])):
        values = torch.stack([found[index][side].values.flatten(0, 1) for index in range(len(part))]).double()
        norms = torch.stack([found[index][side].norms.flatten() for index in range(len(part))]).double()
        even = (torch.arange(first, first + len(part)) % 2 == 0)[:, None, None]
        sums[f"sum/{side}"] = torch.stack([(values * even).sum(0), (values * ~even).sum(0)])
        sums[f"norm/{side}"] = norms.sum(0)
    return sums


def paired(rows: Path, partner: Path | None) -> Iterator[tuple[Row, ...]]:
    """Rows, or pairs of rows with the same id. Raises UserError for pairs whose prompts differ."""
    if partner is None:
        yield from ((row,) for row in read_jsonl(rows / "rows.jsonl"))
        return
    by_id = itemgetter("id")
    for _, found in groupby(merge(_ascending(rows), _ascending(partner), key=by_id), key=by_id):
        pair = tuple(found)
        if len(pair) < 2:
            continue
        row, other = pair
        if (row["prompt"], row["system"]) != (other["prompt"], other["system"]):
            raise UserError(
                f"row {row['id']} has different prompts or system prompts on the two sides: pair rows of the same "
                "prompt"
            )
        yield pair


def _ascending(payload: Path) -> Iterator[Row]:
    last = None
    for row in read_jsonl(payload / "rows.jsonl"):
        if last is not None and row["id"] <= last:
            raise UserError(f"{payload / 'rows.jsonl'} is not sorted by id: sort it, so that its rows can be paired")
        last = row["id"]
        yield row


def _text(row: Row) -> list[Any]:
    """The fields of a row that are read."""
    return [row["prompt"], row["answer"], row["system"]]


def read_side(payload: Path, name: str = "rows") -> Side:
    """One side of a payload of mean activations."""
    tensors = load_file(payload / f"{name}.safetensors")
    return Side(tensors["values"], tensors["norms"], read_json(payload / f"{name}.json"))


def difference_vectors(
    out: Path, config: DifferenceConfig, *, scratch: Path, target: Path, control: Path | None = None
) -> dict[str, Any]:
    """Stage: writes vectors.safetensors with the differences target minus control, and vectors.json with their notes.

    Names are as in `resid_post/14/mean_answer`, with random controls under `.../random-3`. Without `control` the two
    sides of one payload of means are compared: one model on two texts.
    """
    sides = read_side(target), read_side(target, "partner") if control is None else read_side(control)
    check_sides(*sides)
    vectors = differences(*sides, source=config.source)
    halves = [differences(*sides, source=config.source, half=half) for half in (0, 1)]
    measured = {
        name: {
            "relative_norm": vector.note.norm / (vector.note.residual_norm or math.nan),
            "split_half_cosine": float(cosine_similarity(halves[0][name].values, halves[1][name].values, dim=0)),
        }
        for name, vector in vectors.items()
    }
    write_with_random(out, vectors, config, measured)
    return {"vectors": len(vectors), "random": config.random}


def check_sides(target: Side, control: Side) -> None:
    """Raises UserError if the two sides differ both in the model and in the text, or in neither."""
    a, b = target.note, control.note
    if a["names"] != b["names"] or a["dtype"] != b["dtype"] or a["reader"]["base"] != b["reader"]["base"]:
        raise UserError("the two sides were read at different places or on different bases: read both in the same way")
    if a["reader"] == b["reader"]:
        if a["text"] == b["text"]:
            raise UserError(
                "the two sides are the same text read by the same model: change the model or the text of one of them"
            )
        prompts = [name for name in a["names"] if name.endswith(PROMPT_KINDS)]
        if prompts:
            raise UserError(
                f"{prompts[0]}: with one model the two sides do not differ at prompt tokens, which come before the "
                "answer: read at mean_answer or last_answer, or compare two models"
            )
    elif a["text"] != b["text"]:
        raise UserError("two models must read the same text: give both the same rows")


def differences(target: Side, control: Side, *, source: str, half: int | None = None) -> dict[str, Vector]:
    """Target minus control for every name, over one half of the rows or over all."""
    count = target.note["rows"]
    apart = target.values - control.values
    means = over_halves(apart, count) if half is None else apart[half]
    vectors: dict[str, Vector] = {}
    for number, name in enumerate(target.note["names"]):
        site, layer, read_at = name.split("/")
        note = VectorNote(
            site=site,
            layer=int(layer),
            source=source,
            norm=0.0,
            residual_norm=float(control.norms[number]),
            read_at=read_at,
            rows=count,
            base=target.note["reader"]["base"],
        )
        vectors[name] = noted(means[number], note)
    return vectors


def half_sizes(count: int) -> Float[Tensor, "2"]:
    """How many of `count` rows are even and how many are odd."""
    return torch.tensor([(count + 1) // 2, count // 2], dtype=torch.float64)


def over_halves(values: Float[Tensor, "2 n d"], count: int) -> Float[Tensor, "n d"]:
    """The mean over all `count` rows, from the means of the even and of the odd ones."""
    return (values * (half_sizes(count) / count)[:, None, None]).sum(0)


def write_with_random(
    out: Path,
    vectors: Mapping[str, Vector],
    config: DifferenceConfig | ImportConfig | TrainVectorConfig,
    measured: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Writes vectors.safetensors with the vectors and random ones of equal norm for each, and vectors.json with the
    notes of the vectors and what was `measured` of them."""
    generator = torch.Generator().manual_seed(config.seed)
    made = dict(vectors)
    for name in sorted(vectors):
        made |= {f"{name}/random-{i}": random_like(vectors[name], generator) for i in range(config.random)}
    write_vectors(out, made)
    notes = {name: vector.note.model_dump(mode="json") for name, vector in vectors.items()}
    write_json(out / "vectors.json", {name: {**note, **(measured or {}).get(name, {})} for name, note in notes.items()})


def import_vector(out: Path, config: ImportConfig, *, scratch: Path, base: Path) -> dict[str, Any]:
    """Stage: checks a user's vectors against the base and writes them with random controls."""
    stated = config.model_dump(include={"site", "layer"}, exclude_none=True)
    vectors = read_vectors(config.path.expanduser(), stated)
    model = AutoConfig.from_pretrained(base)
    for name, vector in vectors.items():
        check_vector(name, vector, model, base)
    write_with_random(out, vectors, config)
    return {"vectors": sorted(vectors)}
