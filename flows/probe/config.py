"""The settings of a probe run: the study, the layers, and how probes are fitted."""

from typing import Annotated

from pydantic import Field

from flows.pipeline.study_config import PipelineStudyConfig
from sublim.activations.config import ActivationsConfig
from sublim.inference.config import HfBackend, VllmBackend
from sublim.probes.config import ProbesConfig


class ProbeFlowConfig(PipelineStudyConfig):
    """Linear probes that tell a teacher's lists from the base's, by the base's activations on them."""

    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Layers whose activations are read, counted from 0; null for all."""
    probes: ProbesConfig = ProbesConfig()
    """Where activations are read, how rows are split, and how probes are fitted."""

    def reading(self, layers: int) -> ActivationsConfig:
        """Which activations are read of a model with this many layers."""
        backend, probes = self.study.backend, self.probes
        return ActivationsConfig(
            sites=(probes.site,),
            layers=tuple(range(layers)) if self.layers is None else self.layers,
            read_at=(probes.read_at,),
            dtype=backend.dtype if isinstance(backend, HfBackend | VllmBackend) else "auto",
        )
