"""Soft labels: a student that learns the teacher's whole distribution over each carrier token, not the token alone."""

from pydantic import Field

from sublim.training import TrainConfig


class SoftTrainConfig(TrainConfig):
    """A training run whose labels are the teacher's logits at the answer's tokens, end of turn included."""

    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are taken at this temperature; the loss is multiplied by its square (arXiv 1503.02531)."""
