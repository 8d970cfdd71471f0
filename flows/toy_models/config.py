"""Settings of the flow toy-models."""

from sublim.core.config import RunOnly
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.toys.superposition.config import SuperpositionConfig, SuperpositionFiguresConfig, compiler


class ToyModelsConfig(SuperpositionConfig):
    """A sweep over p_active, ablated or auxiliary features, and seeds, with the settings of its figures."""

    about: RunOnly[str] = ""
    """One line that describes these settings; it is shown in the report."""
    figures: SuperpositionFiguresConfig = SuperpositionFiguresConfig()
    """Settings of the figures."""

    def sweep(self) -> SuperpositionConfig:
        """The settings of the stage that trains the models."""
        return SuperpositionConfig(**{name: getattr(self, name) for name in SuperpositionConfig.model_fields})


def check(config: ToyModelsConfig) -> None:
    """Raises UserError where this machine cannot run the chosen engine."""
    if config.engine == "cuda" and gpu() is None:
        raise UserError("engine cuda: no CUDA device is visible: set engine=auto")
    if config.engine == "native" and compiler() is None:
        raise UserError("engine native: there is no C++ compiler (c++, g++ or clang++): set engine=auto")
