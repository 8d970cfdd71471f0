"""Everything a probe run can be told: whose numbers, who reads them, which layers, and how probes are fitted."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from flows.pipeline.config import PipelineConfig
from flows.runs.settings import build
from sublim.activations.config import ActivationsConfig
from sublim.core.config import Config, RunOnly
from sublim.inference.config import HfBackend, VllmBackend
from sublim.probes.config import ProbesConfig


class ProbeFlowConfig(Config):
    """Linear probes on a target's numbers against the control's, as the base reads them."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    study: PipelineConfig
    """Base, teacher and carrier, as the pipeline has them; its students are not trained."""
    target: tuple[str, ...] | None = None
    """The word or words; null for the study's."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Blocks that are read, counted from 0; null for every one."""
    probes: ProbesConfig = ProbesConfig()
    """Site, tokens, splits and fit."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory these settings need; 0: none, a CPU will do."""

    @field_validator("target", mode="before")
    @classmethod
    def _split(cls, target: Any) -> Any:
        return [word.strip() for word in target.split(",")] if isinstance(target, str) else target

    @property
    def pipeline(self) -> PipelineConfig:
        """The study with this run's targets."""
        if self.target is None:
            return self.study
        return build(PipelineConfig, {**self.study.model_dump(), "target": self.target})

    def reading(self, layers: int) -> ActivationsConfig:
        """What is read of a model of so many layers."""
        backend, probes = self.study.backend, self.probes
        return ActivationsConfig(
            sites=(probes.site,),
            layers=tuple(range(layers)) if self.layers is None else self.layers,
            read_at=(probes.read_at,),
            dtype=backend.dtype if isinstance(backend, HfBackend | VllmBackend) else "auto",
        )
