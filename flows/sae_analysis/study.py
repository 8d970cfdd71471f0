"""What an SAE analysis has made, by name: the carrier, the SAEs and the contrasts between feature activations."""

from typing import NamedTuple

from flows.pipeline.models import ModelState
from sublim.sae.config import SaeNote
from sublim.store.manifest import Artifact


class Carrier(NamedTuple):
    """The writers, their rows, and the students trained on them."""

    base: Artifact
    teachers: dict[str, ModelState]
    rows: dict[str, Artifact]
    """The filtered number lists of each teacher, under its target, and of the base, under `control`."""
    students: dict[str, list[Artifact]]
    """The students under the same names, seed by seed; empty if none are read."""


class Sae(NamedTuple):
    """An SAE with its note (model, layer, site) and its quality."""

    note: SaeNote
    artifact: Artifact
    quality: Artifact


class Contrast(NamedTuple):
    """A comparison of the features of two sets of rows or two models."""

    target: str
    kind: str
    """numbers, teacher, student 0, student 0 minus base, word plain, word chat, against wolf."""
    sides: tuple[str, str]
    """The encodings that are compared. Two contrasts with an encoding in common share features by that alone."""
    sae: str
    artifact: Artifact
    examples: Artifact | None

    @property
    def name(self) -> str:
        """The name of its set of features among the overlaps."""
        return f"{self.target} {self.kind}"


class Analysis(NamedTuple):
    """Everything that a finished analysis has made."""

    saes: list[Sae]
    contrasts: list[Contrast]
    overlaps: dict[str, Artifact]
    """The contrasts' overlaps for each SAE."""
    vectors: dict[tuple[str, str], Artifact]
    """The features along the steering vector, for each target and SAE."""
    labels: dict[str, list[Artifact]]
    """For each SAE the labels from Neuronpedia and, if a model sorted them, the kinds of those that are shown."""
    probes: Artifact | None


def sets_of(contrasts: list[Contrast], sae: str) -> dict[str, Artifact]:
    """The contrasts of one SAE that are drawn and set against each other, by name: all but those between targets."""
    return {each.name: each.artifact for each in compared_sets(contrasts, sae)}


def encodings_of(contrasts: list[Contrast], sae: str, encoded: dict[str, Artifact], side: int) -> dict[str, Artifact]:
    """The encoded rows on one side (0: target, 1: control) of the contrasts of `sets_of`, under the same names."""
    return {each.name: encoded[each.sides[side]] for each in compared_sets(contrasts, sae)}


def compared_sets(contrasts: list[Contrast], sae: str) -> list[Contrast]:
    """The contrasts behind `sets_of`."""
    return [each for each in contrasts if each.sae == sae and not each.kind.startswith("against")]
