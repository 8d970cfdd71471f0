"""What the figures of a steering run show."""

from sublim.config import Config


class SteeringFiguresConfig(Config):
    """Figures for one target."""

    target: str
    """The word."""
