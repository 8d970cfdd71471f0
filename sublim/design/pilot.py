"""Pilots: the paired differences of a finished comparison in the store, for planning the next study."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sublim.core.errors import UserError
from sublim.evals.effects import units_of
from sublim.evals.preference.config import Primary, Scores
from sublim.store.folder import Store
from sublim.store.manifest import Artifact, Manifest


class Pilot(NamedTuple):
    """The differences student minus control of a finished comparison."""

    matrix: Float[ndarray, "s q"]
    """One row for each pair and one column for each question."""
    blocks: list[int]
    """The block of each pair."""
    target: str

    @property
    def units(self) -> Float[ndarray, "u q"]:
        """One row for each independent unit, which is a block where there are several and otherwise a pair."""
        members = units_of(len(self.matrix), len(self.matrix), self.blocks).members
        return np.stack([self.matrix[pairs].mean(axis=0) for pairs in members])


def read_pilot(store: Store, manifest: Manifest, metric: Primary) -> Pilot:
    """The differences behind an artifact of `compare`, on the questions that every student and control answered.

    Raises UserError for another stage's artifact, for damaged inputs, and where no question has the metric.
    """
    if manifest.artifact.stage != "compare":
        raise UserError(
            f"{manifest.artifact.key[:12]} is an artifact of {manifest.artifact.stage}: give an artifact of `compare` "
            "or a run of the pipeline"
        )
    arms = [
        [_scores(store, Artifact.model_validate(each)) for each in manifest.inputs[name]]
        for name in ("students", "controls")
    ]
    target = arms[0][0].target
    if metric == "rate" and any("rate_readable" not in scores.metrics for arm in arms for scores in arm):
        raise UserError("the pilot's rate is over readable answers, not over all asked: run the pilot again")
    students, controls = (
        np.array([scores.metrics[metric][target].per_question for scores in arm], dtype=float) for arm in arms
    )
    differences = students - controls
    used = np.isfinite(differences).all(axis=0)
    if not used.any():
        raise UserError(f"the pilot has no {metric} for its students and controls: choose the other --metric")
    return Pilot(differences[:, used], list(manifest.config.get("blocks") or [0] * len(differences)), target)


def _scores(store: Store, artifact: Artifact) -> Scores:
    if problem := store.problem(artifact):
        raise UserError(f"the pilot cannot be read: {problem}; run it again to restore it")
    return Scores.model_validate_json((store.payload(artifact) / "scores.json").read_bytes())
