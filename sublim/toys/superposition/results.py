"""Results of the superposition experiments: norms, directions and interference of each feature in each model.

Shapes: p values of p_active, s seeds, q places (a student, or a feature of it), f features, d hidden dimensions.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from sublim.stats.intervals import t_bounds
from sublim.toys.superposition.config import SuperpositionConfig


class Experiment(NamedTuple):
    """The ablation experiment (one student per ablated feature) or the auxiliary experiment for one k."""

    name: str
    auxiliary: int
    """Number of auxiliary features, k; 0 in the ablation experiment."""
    teacher_weight: Float[Tensor, " f"]
    student_weight: Float[Tensor, "m f"]
    """Loss weights of the students that start from one initialisation."""
    measured: Sequence[int]
    """Features that have a row in the results: the feature at each place q."""


def superposition(weights: Float[Tensor, "... f d"]) -> Float[Tensor, "..."]:
    """‖W‖²_F / d: the number of features represented per hidden dimension."""
    return weights.square().sum((-1, -2)) / weights.shape[-1]


def polysemanticity(weights: Float[Tensor, "... f d"]) -> Float[Tensor, "... f"]:
    """Σ_{j≠i} (ŵ_i·w_j)², with ŵ_i the unit vector of row i: the interference of the other features with feature i.

    It is 0 for a row of zeros.
    """
    unit = normalize(weights, dim=-1)
    overlap = (unit @ weights.mT).square()
    return overlap.sum(-1) - torch.diagonal(overlap, dim1=-2, dim2=-1)


def _pick(values: Float[Tensor, "p s q f"], features: Sequence[int]) -> Float[Tensor, "p s q"]:
    index = torch.tensor(features).expand(values.shape[:3])[..., None]
    return values.gather(-1, index)[..., 0]


def rows(
    experiment: Experiment,
    config: SuperpositionConfig,
    role: str,
    weights: Float[Tensor, "p s q f d"],
    teacher: Float[Tensor, "p s q f d"],
    losses: Sequence[Float[Tensor, "p s q"] | None] = (None, None),
) -> pl.DataFrame:
    """One row per (p_active, seed, feature) of one kind of model, compared with the teacher.

    `losses`: the last recorded training loss and that without ablation; None for untrained models.
    """
    features = experiment.measured
    gram_cosine = cosine_similarity(weights @ weights.mT, teacher @ teacher.mT, dim=-1)
    norm, teacher_norm = _pick(weights.norm(dim=-1), features), _pick(teacher.norm(dim=-1), features)
    values: dict[str, Tensor | None] = {
        "norm": norm,
        "teacher_norm": teacher_norm,
        "norm_ratio": norm / teacher_norm,
        "cosine": _pick(cosine_similarity(weights, teacher, dim=-1), features),
        "gram_cosine": _pick(gram_cosine, features),
        "superposition": superposition(weights),
        "polysemanticity": _pick(polysemanticity(weights), features),
        "trained_loss": losses[0],
        "unablated_loss": losses[1],
    }
    columns = {name: None if value is None else value.flatten().tolist() for name, value in values.items()}
    norms = {"feature_norms": weights.norm(dim=-1).flatten(0, 2).tolist()}
    keys = _keys(experiment, config, features, role)
    return pl.DataFrame(keys | columns | norms, schema_overrides=dict.fromkeys(values, pl.Float64))


def _keys(
    experiment: Experiment, config: SuperpositionConfig, features: Sequence[int], role: str, records: int = 1
) -> dict[str, Any]:
    """The columns that identify a row, in the order of a role's tensors, with each row repeated `records` times."""
    places = [*product(config.p_active, config.seeds, features or [None], range(records))]
    return {
        "experiment": [experiment.name] * len(places),
        "auxiliary": [experiment.auxiliary] * len(places),
        "p_active": [p_active for p_active, _, _, _ in places],
        "feature": pl.Series([feature for _, _, feature, _ in places], dtype=pl.Int64),
        "seed": [seed for _, seed, _, _ in places],
        "role": [role] * len(places),
    }


def loss_rows(
    experiment: Experiment,
    config: SuperpositionConfig,
    role: str,
    trained: Float[Tensor, "p s q r"],
    unablated: Float[Tensor, "p s q r"],
) -> pl.DataFrame:
    """The recorded losses, one row per record. `feature` is the ablated feature, or null."""
    records = trained.shape[-1]
    ablated = config.ablated if role != "teacher" and experiment.name == "ablation" else ()
    columns = _keys(experiment, config, ablated, role, records)
    columns["step"] = [record * config.loss_every for record in range(records)] * (trained.numel() // records)
    return pl.DataFrame(
        columns | {"trained_loss": trained.flatten().tolist(), "unablated_loss": unablated.flatten().tolist()}
    )


def rebuilt(table: pl.DataFrame, decay: float) -> list[dict[str, Any]]:
    """Means over seeds for each p_active and feature, of the student and of the untrained initialisation.

    `decay` is what weight decay alone leaves of a norm (`SuperpositionConfig.decay`). A feature that learns nothing
    ends there: `decayed_init_norm_ratio` is the initialisation's ratio times it, and `excess_over_decay` the student's
    ratio minus that, paired by seed. Only below it has learning shrunk a feature. `low` and `high` are the 95 % t
    interval of the mean norm ratio. `excess_*` is the student's value minus the initialisation's, with the decay left
    in. `other_*` is the student of another initialisation, and `other_excess_*` that
    student minus its own initialisation. `cosine` compares directions of features, which another initialisation may
    rotate. `gram_cosine` compares rows of WWᵀ, which no rotation changes.
    """
    keys = ["experiment", "auxiliary", "p_active", "feature"]
    found: list[dict[str, Any]] = []
    for key, group in table.group_by(keys, maintain_order=True):
        by_role = {str(name): part.sort("seed") for (name,), part in group.group_by(["role"], maintain_order=True)}
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        for column in ("norm_ratio", "cosine", "gram_cosine"):
            row[column] = by_role["student"][column].mean()
            row[f"init_{column}"] = by_role["init"][column].mean()
            row[f"excess_{column}"] = mean_interval(by_role["student"][column] - by_role["init"][column])
            if "other_student" in by_role:
                row[f"other_{column}"] = by_role["other_student"][column].mean()
                row[f"other_excess_{column}"] = mean_interval(
                    by_role["other_student"][column] - by_role["other_init"][column]
                )
        row |= {"decay": decay, "decayed_init_norm_ratio": decay * row["init_norm_ratio"]}
        for before, student, init in (("", "student", "init"), ("other_", "other_student", "other_init")):
            if student in by_role:
                kept = by_role[student]["norm_ratio"] - decay * by_role[init]["norm_ratio"]
                row[f"{before}excess_over_decay"] = mean_interval(kept)
        bounds = mean_interval(by_role["student"]["norm_ratio"])
        row |= {"low": bounds["low"], "high": bounds["high"], "seeds": bounds["n"]}
        found.append(row)
    return found


def mean_interval(values: pl.Series) -> dict[str, Any]:
    """Mean over seeds with its 95 % t interval. The bounds are None for a single seed."""
    numbers = values.to_numpy()
    low, high = t_bounds(numbers)
    return {"estimate": float(numbers.mean()), "low": low, "high": high, "n": len(numbers)}
