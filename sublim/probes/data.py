"""The data of probes: activations of two or more classes, and splits that keep all answers to a prompt together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from sublim.activations.read import read_shards
from sublim.core.errors import UserError
from sublim.probes.config import ProbesConfig

ALL = -1
"""The layer number that stands for the probe on all layers."""


class Class(NamedTuple):
    """The activations of one class, read from one payload."""

    values: Float[Tensor, "l n d"]
    prompts: Int[ndarray, " n"]
    layers: list[int]


class Rows(NamedTuple):
    """The data of one classification: one target against the control, or all classes."""

    target: str
    classes: int
    values: Float[Tensor, "l m d"]
    """Activations by layer and row, for all classifications together, since they share the control."""
    places: Int[ndarray, " n"]
    """Positions in `values` of the rows of this classification."""
    labels: Int[ndarray, " n"]
    """Class of every row; 0 is the control."""
    prompts: Int[ndarray, " n"]
    layers: list[int]


class Split(NamedTuple):
    """Row numbers within one classification."""

    train: Int[ndarray, " a"]
    validation: Int[ndarray, " b"]
    test: Int[ndarray, " c"]


def read_class(payload: Path, config: ProbesConfig) -> Class:
    """Reads the activations of a payload at the site and tokens in `config`. Raises UserError if there are none."""
    tables, found = list[pl.DataFrame](), dict[int, list[Tensor]]()
    for shard in read_shards(payload):
        entries = shard.entries.filter(pl.col("read_at") == config.read_at)
        places = torch.tensor(entries["place"].to_list(), dtype=torch.long)
        tables.append(entries)
        for name, tensor in shard.tensors.items():
            site, _, layer = name.partition("/")
            if site == config.site:
                found.setdefault(int(layer), []).append(tensor[places].float())
    if not found or not sum(len(table) for table in tables):
        raise UserError(f"no {config.site} was read at {config.read_at}: read it, or change site and read_at")
    index, layers = pl.concat(tables), sorted(found)
    if index["id"].null_count():
        raise UserError("the rows have no ids, which tell the answers that share a prompt: give rows with ids")
    prompts = index["id"].to_numpy() // config.answers
    return Class(torch.stack([torch.cat(found[layer]) for layer in layers]), prompts, layers)


def together(classes: list[Class], questions: Mapping[str, Sequence[int]]) -> list[Rows]:
    """The data of every classification, over one tensor of values.

    `questions` gives for each name the numbers of its classes, the control first.
    """
    if any(one.layers != classes[0].layers for one in classes):
        raise UserError("target and control were read at different layers: read both at the same layers")
    values = torch.cat([one.values for one in classes], 1)
    ends = np.cumsum([len(one.prompts) for one in classes])
    places = [np.arange(end - len(one.prompts), end) for one, end in zip(classes, ends, strict=True)]
    return [
        Rows(
            name,
            len(members),
            values,
            np.concatenate([places[one] for one in members]),
            np.concatenate([np.full(len(places[one]), label) for label, one in enumerate(members)]),
            np.concatenate([classes[one].prompts for one in members]),
            classes[0].layers,
        )
        for name, members in questions.items()
    ]


def split(rows: Rows, config: ProbesConfig, rng: np.random.Generator) -> Split:
    """Splits the prompts, and with each prompt all its answers, into training, validation and test.

    The split is stratified by the set of classes that answered a prompt. Raises UserError if a part lacks a class.
    """
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    answered: dict[int, set[int]] = {}
    for prompt, label in zip(rows.prompts.tolist(), rows.labels.tolist(), strict=True):
        answered.setdefault(prompt, set()).add(label)
    groups: dict[tuple[int, ...], list[int]] = {}
    for prompt in sorted(answered):
        groups.setdefault(tuple(sorted(answered[prompt])), []).append(prompt)
    for key in sorted(groups):
        order = rng.permutation(groups[key]).tolist()
        first, second = round(config.train * len(order)), round((config.train + config.validation) * len(order))
        for part, chosen in zip(parts, (order[:first], order[first:second], order[second:]), strict=True):
            part.extend(chosen)
    found = Split(*(np.flatnonzero(np.isin(rows.prompts, part)) for part in parts))
    if any(len(np.unique(rows.labels[part])) < rows.classes for part in found):
        raise UserError(f"{len(answered)} prompts are too few to split for {rows.target}: give more rows")
    return found


def shuffled(labels: Int[ndarray, " n"], parts: Split, rng: np.random.Generator) -> Int[ndarray, " n"]:
    """Labels shuffled within each part of the split, so that the class frequencies stay the same."""
    mixed = labels.copy()
    for part in parts:
        mixed[part] = rng.permutation(labels[part])
    return mixed
