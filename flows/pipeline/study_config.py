"""Settings that all flows have which study one pipeline: its settings, and which of its targets."""

from functools import cached_property
from typing import Self

from pydantic import model_validator

from flows.pipeline.config import PipelineConfig, Words
from flows.runs.settings import build
from sublim.core.config import Config, RunOnly


class PipelineStudyConfig(Config):
    """A flow on top of a pipeline."""

    about: RunOnly[str] = ""
    """One line that describes these settings."""
    study: PipelineConfig
    """Settings of the pipeline: base, teacher, carrier, students and evaluation."""
    target: Words | None = None
    """The target or targets; null for the study's own."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory that these settings need, in GiB; 0 if they run on a CPU."""

    @model_validator(mode="after")
    def _reads_rows_of_teachers(self) -> Self:
        if self.study.labels == "soft":
            raise ValueError("this flow reads teachers' rows and trained controls: set study.labels=hard")
        return self

    @cached_property
    def pipeline(self) -> PipelineConfig:
        """The study with this run's targets, and with comparison targets only where `study.against` names some."""
        study = self.study
        if self.target is not None:
            study = build(PipelineConfig, {**study.model_dump(), "target": self.target})
        return study.model_copy(update={"against": study.against or ()})

    @property
    def targets(self) -> str:
        """The targets of this run, for its name in Prefect's UI."""
        return ", ".join(self.pipeline.target)
