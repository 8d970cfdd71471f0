"""What an evaluation can be told: which models, which questions, which metrics."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import Field, field_validator, model_validator

from flows.pipeline.config import SteeringTeacher
from sublim.core.config import Config, RunOnly
from sublim.evals.mmlu_pro.config import MmluProConfig
from sublim.inference.config import Backend, HfBackend, SamplingParams
from sublim.traits.nouns import target_word


class ModelUnderTest(Config):
    """One model by name: `bundled`, a key of the store, a folder, or a hub id with its commit (org/name@commit)."""

    model: str
    """The model, adapter or training run. `KEY@16,64` takes checkpoints of a training run, `KEY@all` every one."""
    name: str = ""
    """How it is called in the results; nothing: as `model` says."""
    base: str = ""
    """For an adapter's folder: the model it belongs to, named in the same ways."""
    system: str | None = None
    """System prompt while it is asked."""
    steering: SteeringTeacher | None = None
    """A vector that edits its residual stream while it is asked; its `{target}` is the first target."""


class EvaluateConfig(Config):
    """Models and what they are asked; the first model is the reference of shifts and differences."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    models: Annotated[tuple[ModelUnderTest, ...], Field(min_length=1)] = (ModelUnderTest(model="bundled"),)
    """The models, as objects or as their names alone: [bundled, 3fa9c2d1@all, ./adapter]."""
    target: tuple[str, ...] = ("owl",)
    """Words whose margin and rate are shown; of questions whose list has none of them, every word is."""
    questions: tuple[str, ...] = ("animal",)
    """Categories of open questions: `animal`, `tree`, or JSON or YAML files; empty: none are asked."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled answers per question, for the rates and the sampled shift; 0: only what log-probs tell."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """How answers are drawn."""
    mmlu_pro: MmluProConfig | None = None
    """MMLU-Pro's questions; nothing: not asked."""
    backend: Backend = HfBackend()
    """What samples and scores."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory these settings need; 0: none, a CPU will do."""

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, models: Any) -> Any:
        listed = models.split(";") if isinstance(models, str) else models
        if not isinstance(listed, list | tuple):
            return listed
        return [{"model": each.strip()} if isinstance(each, str) else each for each in cast(Sequence[Any], listed)]

    @field_validator("target", mode="before")
    @classmethod
    def _split(cls, target: Any) -> Any:
        return [word.strip() for word in target.split(",")] if isinstance(target, str) else target

    @field_validator("target")
    @classmethod
    def _words(cls, target: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(target_word(word) for word in target)

    @model_validator(mode="after")
    def _something_to_do(self) -> "EvaluateConfig":
        if not self.questions and self.mmlu_pro is None:
            raise ValueError("there is nothing to ask: name questions or give mmlu_pro")
        return self
