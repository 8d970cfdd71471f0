"""Settings of the check of what a run needs of its base, beyond the checks of every base."""

from sublim.core.config import Config
from sublim.inference.config import NumberFormat


class CheckBaseConfig(Config):
    """What a run needs of its base; checked right after the base is prepared."""

    systems: tuple[str, ...] = ()
    """System prompts with which the base will be asked."""
    constraint: NumberFormat | None = None
    """Format of number lists that answers will be forced into; null for none."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that will have an adapter."""
