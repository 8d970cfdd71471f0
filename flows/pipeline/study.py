"""What a pipeline run has made: models, rows, answers and comparisons."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from flows.pipeline.arms import Contrast, StudentSet
from flows.pipeline.block import Block
from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import BaseName, ModelKey, TeacherKey, Unit
from flows.pipeline.models import ModelState
from sublim.core.config import Config
from sublim.store.folder import Store
from sublim.store.manifest import Artifact

C = TypeVar("C", bound=Config)


def read(kind: type[C], store: Store, artifact: Artifact, file: str) -> C:
    """What a stage wrote to a JSON file of its payload."""
    return kind.model_validate_json((store.payload(artifact) / file).read_bytes())


class Comparison(NamedTuple):
    """One contrast at one checkpoint: students against their controls."""

    contrast: Contrast
    update: int | None
    artifact: Artifact

    @property
    def label(self) -> str:
        """The label of the stage that made it."""
        return self.contrast.label(self.update)


class Diagnosed(NamedTuple):
    """The diagnostics' artifacts; what could not be measured is missing, with its reason."""

    losses: dict[ModelKey, Artifact]
    """Losses on unseen prompts of the bases, and of the first block's teachers and students."""
    shifts: dict[str, Artifact]
    """One artifact for each target."""
    divergence: dict[str, Artifact]
    """One artifact for each target."""
    missing: dict[str, str]
    """Reasons, under the name of the diagnostic and of the target."""


class TrainedModels(NamedTuple):
    """A study up to its students, before anybody is asked anything."""

    bases: dict[BaseName, Artifact]
    blocks: list[Block]
    sets: list[StudentSet]
    units: list[Unit]
    students: dict[str, list[Artifact]]
    """The students of each set, in the order of the units."""

    def without(self, targets: Sequence[str]) -> "TrainedModels":
        """The same without the teachers and students of some targets."""
        blocks = [
            each._replace(teachers={name: one for name, one in each.teachers.items() if name not in targets})
            for each in self.blocks
        ]
        return self._replace(blocks=blocks, sets=[each for each in self.sets if each.writer not in targets])

    @property
    def teachers(self) -> dict[TeacherKey, ModelState]:
        """Every block's."""
        return {
            TeacherKey(target, block.number): each for block in self.blocks for target, each in block.teachers.items()
        }


class Study(NamedTuple):
    """A finished study: everything the report shows."""

    config: PipelineConfig
    trained: TrainedModels
    asked: dict[ModelKey, Artifact]
    comparisons: list[Comparison]
    capability: list[Comparison]
    """The same contrasts on MMLU-Pro; empty where it was not asked."""
    shifts: list[Comparison]
    """The same contrasts by total variation from the base."""
    diagnosed: Diagnosed | None
    """The diagnostics that were asked for."""
    specific: dict[int | None, Artifact]
    """The students of all teachers beside each other at every checkpoint; empty where there is one target alone."""

    def main(self, target: str) -> Contrast:
        """The teacher's students against the controls, for one target."""
        return next(each.contrast for each in self.comparisons if each.contrast.name == target)
