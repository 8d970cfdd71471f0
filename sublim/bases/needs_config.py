"""What a run asks of its base beyond what every base is checked for."""

from sublim.core.config import Config
from sublim.inference.config import NumberFormat


class CheckBaseConfig(Config):
    """What will be asked of a base later in the run; tried right after the base is prepared."""

    systems: tuple[str, ...] = ()
    """System prompts that it will answer under."""
    constraint: NumberFormat | None = None
    """Format of number lists that its answers will be forced into; nothing: none is forced."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that will get an adapter."""
