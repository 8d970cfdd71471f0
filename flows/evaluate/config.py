"""The settings of an evaluation: models, questions and metrics."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import Field, field_validator, model_validator

from flows.pipeline.config import Words
from flows.pipeline.teacher_config import SteeringTeacher
from sublim.core.config import Config, RunOnly
from sublim.evals.mmlu_pro.config import MmluProConfig
from sublim.inference.config import Backend, HfBackend, SamplingParams


class ModelUnderTest(Config):
    """One model by name: `bundled`, a key of the store, a folder, or a hub id with its commit (org/name@commit)."""

    model: str
    """The model, adapter or training run. `KEY@16,64` takes checkpoints of a training run, `KEY@all` every one."""
    name: str = ""
    """Name in the results; empty for `model`."""
    base: str = ""
    """For an adapter's folder: the model that it adapts, named in the same ways."""
    system: str | None = None
    """System prompt for this model."""
    steering: SteeringTeacher | None = None
    """A vector that is added to its residual stream; `{target}` in it stands for the first target."""


class EvaluateConfig(Config):
    """Models and what they are asked. The first model is the reference for distances and differences."""

    about: RunOnly[str] = ""
    """One line that describes these settings."""
    models: Annotated[tuple[ModelUnderTest, ...], Field(min_length=1)] = (ModelUnderTest(model="bundled"),)
    """The models, as objects or as their names alone: [bundled, 3fa9c2d1@all, ./adapter]."""
    target: Words = ("owl",)
    """Words whose margin and rate are shown. For questions whose list has none of them, all words are shown."""
    questions: tuple[str, ...] = ("animal",)
    """Questions: the categories `animal` and `tree`, or JSON or YAML files; empty for none."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Answers sampled for each question, for rates and the sampled total variation; with 0 only log-probs are used."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """How answers are sampled."""
    mmlu_pro: MmluProConfig | None = None
    """Also ask questions of MMLU-Pro; null for none."""
    backend: Backend = HfBackend()
    """The backend that samples and scores."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory that these settings need, in GiB; 0 if they run on a CPU."""

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, models: Any) -> Any:
        listed = models.split(";") if isinstance(models, str) else models
        if not isinstance(listed, list | tuple):
            return listed
        return [{"model": each.strip()} if isinstance(each, str) else each for each in cast(Sequence[Any], listed)]

    @model_validator(mode="after")
    def _something_to_do(self) -> "EvaluateConfig":
        if not self.questions and self.mmlu_pro is None:
            raise ValueError("there is nothing to ask: name questions or give mmlu_pro")
        return self
