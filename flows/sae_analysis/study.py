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
    """By target and `control`: number rows after the filter."""
    students: dict[str, list[Artifact]]
    """By target and `control`, seed by seed; empty where none are read."""


class Sae(NamedTuple):
    """An SAE, what it is for, and how good it is."""

    note: SaeNote
    artifact: Artifact
    quality: Artifact


class Contrast(NamedTuple):
    """Features of one set of rows against another's."""

    target: str
    kind: str
    """numbers, teacher, student 0, student 0 minus base, word plain, word chat, against wolf."""
    sides: tuple[str, str]
    """What was encoded of each side. Sets of two contrasts that have one in common share more than chance by that."""
    sae: str
    artifact: Artifact
    examples: Artifact | None

    @property
    def name(self) -> str:
        """As its set is called among the overlaps."""
        return f"{self.target} {self.kind}"


class Analysis(NamedTuple):
    """A finished analysis."""

    saes: list[Sae]
    contrasts: list[Contrast]
    overlaps: dict[str, Artifact]
    """By SAE."""
    vectors: dict[tuple[str, str], Artifact]
    """By target and SAE."""
    encoded: dict[str, Artifact]
    labels: dict[str, list[Artifact]]
    """By SAE, Neuronpedia's labels and, where somebody was asked, those of the features shown with their kinds."""
    probes: Artifact | None
