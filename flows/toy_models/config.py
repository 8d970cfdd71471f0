"""What a run of the superposition flow can be told."""

from sublim.core.config import RunOnly
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.toys.superposition.config import SuperpositionConfig, SuperpositionFiguresConfig, compiler


class ToyModelsConfig(SuperpositionConfig):
    """A sweep over p_active × ablated (or auxiliary) features × seeds, and how its figures are drawn."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    figures: SuperpositionFiguresConfig = SuperpositionFiguresConfig()
    """The WᵀW panels."""

    def sweep(self) -> SuperpositionConfig:
        """The part that the models are trained with."""
        return SuperpositionConfig(**{name: getattr(self, name) for name in SuperpositionConfig.model_fields})


def check(config: ToyModelsConfig) -> None:
    """Raises UserError when this machine lacks what the chosen engine needs."""
    if config.engine == "cuda" and gpu() is None:
        raise UserError("engine cuda: no CUDA device is visible: take engine=auto")
    if config.engine == "native" and compiler() is None:
        raise UserError("engine native: there is no C++ compiler (c++, g++ or clang++): take engine=auto")
