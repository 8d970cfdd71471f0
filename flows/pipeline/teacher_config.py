"""How the teachers of a pipeline run are made: by a system prompt, by fine-tuning or by a steering vector."""

from typing import Annotated, Literal

from pydantic import Field

from sublim.core.config import Config, OmittedWhenUnset
from sublim.residual.edits import Edit, Site, Steering, Tokens
from sublim.training.config import TrainConfig


class PromptTeacher(Config):
    """The base with a system prompt that states the preference."""

    kind: Literal["prompt"] = "prompt"
    system: str = "system"
    """Where the system prompts are: `system` for the bundled ones, or a JSON or YAML file."""
    variant: int = 0
    """Which of the system prompts for the chosen set of questions, counted from 0."""


class FinetunedTeacher(Config):
    """The base trained to answer the target to questions that the evaluation does not ask.

    Such a teacher may forget how to write lists. With `rehearsal` it still does, and is then fit to be asked freely.
    """

    kind: Literal["finetuned"] = "finetuned"
    questions: int | None = None
    """How many teacher questions of the chosen set (animal, tree or a file) to train on; null for all."""
    teaches: OmittedWhenUnset[Literal["word", "own_answers"]] = None
    """What it is trained to answer. word, or null: the target. own_answers: what the base itself answered to the same
    questions. Such teachers prefer nothing, and no effect that is specific to a teacher may come of them."""
    rehearsal: OmittedWhenUnset[Annotated[float, Field(gt=0, lt=1)]] = None
    """Share of the rows that the teacher reads which are lists that the base wrote by itself, to prompts that no
    student reads; the others are questions. Null for questions alone."""
    train: TrainConfig
    """How the teacher is trained."""


class SteeringTeacher(Config):
    """The base with a vector added to its residual stream. The steering flow makes such vectors."""

    kind: Literal["steering"] = "steering"
    vectors: str
    """The vectors: a safetensors file, or at least six digits of the key of an artifact in the store."""
    vector: str = "{target}"
    """Name of the vector in the file; `{target}` stands for the target."""
    site: Site | None = None
    """Where in a block the vector is added; needed if the file's metadata do not say it."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The block at which it is added, counted from 0; needed if the file's metadata do not say it."""
    strength: float = 1.0
    """The factor by which the vector is multiplied."""
    scale: Literal["raw", "relative"] = "relative"
    """relative: at strength 1 the vector is as long as the residual stream was on average where the vector was read.
    raw: the vector keeps its own length."""
    tokens: Tokens = "all"
    """The tokens at whose positions the vector is added."""

    def steering(self, target: str) -> Steering:
        """The edit for one target."""
        shared = self.model_dump(include={"strength", "scale", "tokens"})
        return Steering(edits=(Edit(vector=self.vector.replace("{target}", target), **shared),))


Teacher = Annotated[PromptTeacher | FinetunedTeacher | SteeringTeacher, Field(discriminator="kind")]
