"""What is asked, sampled or measured: one model in one state, and the stages that take such a model."""

from typing import NamedTuple

from sublim.evals.mmlu_pro.config import AskMmluProConfig
from sublim.evals.preference.config import AskConfig
from sublim.residual.edits import Steering
from sublim.rows.generate import GenerateConfig
from sublim.store.manifest import Artifact
from tasks.stages import ask, ask_mmlu_pro, generate_numbers


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


def ask_model(plain: AskConfig, label: str, model: ModelState) -> Artifact:
    """A model's answers to the questions of an evaluation."""
    config = plain.model_copy(
        update={"system": model.system, "weights_update": model.update, "steering": model.steering}
    )
    return ask(config, label=label, base=model.base, weights=model.weights, **model.edited)


def sit_exam(plain: AskMmluProConfig, label: str, questions: Artifact, model: ModelState) -> Artifact:
    """A model's answers to MMLU-Pro."""
    config = plain.model_copy(
        update={"system": model.system, "weights_update": model.update, "steering": model.steering}
    )
    return ask_mmlu_pro(
        config, label=label, base=model.base, questions=questions, weights=model.weights, **model.edited
    )


def write_numbers(plain: GenerateConfig, label: str, model: ModelState) -> Artifact:
    """The number lists that a model writes."""
    config = plain.model_copy(update={"system": model.system, "steering": model.steering})
    return generate_numbers(config, label=label, base=model.base, weights=model.weights, **model.edited)
