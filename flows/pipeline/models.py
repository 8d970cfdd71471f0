"""What is asked, sampled or measured: one model in one state, and the stages that take such a model."""

from typing import NamedTuple, TypeVar

from sublim.evals.mmlu_pro.config import AskMmluProConfig, MmluProConfig, PrepareQuestionsConfig
from sublim.evals.preference.config import AskConfig
from sublim.residual.edits import Steering
from sublim.rows.generate import GenerateConfig
from sublim.store.manifest import Artifact
from tasks.stages import ask, ask_mmlu_pro, generate_numbers, prepare_mmlu_pro

Asking = TypeVar("Asking", AskConfig, AskMmluProConfig)


class ModelState(NamedTuple):
    """A base model, perhaps with trained weights, a system prompt or an edited residual stream."""

    base: Artifact
    weights: Artifact | None = None
    """What a training stage wrote; None for the base's own weights."""
    update: int | None = None
    """Which checkpoint of `weights`; None for the last."""
    system: str | None = None
    """The system prompt; None for what the chat template does by itself."""
    steering: Steering | None = None
    vectors: Artifact | None = None
    """The vectors that `steering` names."""

    @property
    def edited(self) -> dict[str, Artifact]:
        """The vectors as a stage's input; nothing for a model that is not steered."""
        return {} if self.vectors is None else {"vectors": self.vectors}

    def as_asked(self, plain: Asking) -> Asking:
        """The settings of a stage that asks a model, for this one."""
        changes = {"system": self.system, "weights_update": self.update, "steering": self.steering}
        return plain.model_copy(update=changes)


def ask_model(plain: AskConfig, label: str, model: ModelState) -> Artifact:
    """A model's answers to the questions of an evaluation."""
    return ask(model.as_asked(plain), label=label, base=model.base, weights=model.weights, **model.edited)


def exam_of(exam: MmluProConfig) -> Artifact:
    """The questions of MMLU-Pro that are asked."""
    return prepare_mmlu_pro(PrepareQuestionsConfig(**exam.model_dump(exclude={"generate"})))


def sit_exam(plain: AskMmluProConfig, label: str, questions: Artifact, model: ModelState) -> Artifact:
    """A model's answers to MMLU-Pro."""
    config = model.as_asked(plain)
    return ask_mmlu_pro(
        config, label=label, base=model.base, questions=questions, weights=model.weights, **model.edited
    )


def write_numbers(plain: GenerateConfig, label: str, model: ModelState) -> Artifact:
    """The number lists that a model writes."""
    config = plain.model_copy(update={"system": model.system, "steering": model.steering})
    return generate_numbers(config, label=label, base=model.base, weights=model.weights, **model.edited)
